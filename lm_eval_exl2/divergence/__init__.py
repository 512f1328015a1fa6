"""Token by token: how far a model's next-token distributions are from another's.

`protocols` says where, `text` on what, `models` who; `tokens` compares two distributions, `measure`
runs the engines, `baseline_cache` stands in for a baseline that does not fit beside its candidate,
`statistics` sums up, `report` shows, `command` is the command line.
"""
