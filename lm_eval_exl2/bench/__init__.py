"""How fast a checkpoint answers: latencies, throughput, scenarios, and whether they are honest.

Measures; says nothing of quality, which is the business of the tasks and of `compare`.
"""
