"""Team tasks that come with packages of their own, behind one batched interface."""
