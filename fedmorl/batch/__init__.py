"""Sweeps: one experiment notebook, many parameters, on this machine or on a cluster; killed, resumed, collected.

grid     a YAML file  ──►  the runs it asks for, each with its id
store    executed notebooks, what is finished and what is not; the ledger of attempts
worker   one attempt at one run, wherever Dask puts it
engine   a Dask cluster: embedded, at an address, or through Slurm
sweep    runs what is missing, tells what happened
tables   rows of finished runs  ──►  results/NAME.csv; what in it is stale
"""
