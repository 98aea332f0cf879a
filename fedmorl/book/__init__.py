"""papermill, stage, jupyter-book, checks: from the sources of the book to pages that hold."""
