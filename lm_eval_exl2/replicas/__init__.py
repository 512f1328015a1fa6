"""Several copies of a model share the requests of one run, on this machine or on a cluster.

`cut` makes work units, `dealing` decides who gets which and what happens when a replica fails,
`driving` does it, `replica` answers one unit, `replicated` puts them together for the adapter, and
`ray_replicas` is the only module that knows Ray. Without `data_parallel_size` none is imported.
"""
