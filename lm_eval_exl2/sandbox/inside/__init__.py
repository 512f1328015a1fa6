"""What runs inside the sandboxed processes: standard library only, sent there as compiled code.

These modules import one another relatively, because inside they live in a package of another name,
and avoid modules that are slow to import (`json`, `re`, `typing`, `enum`): two processes start for
every program.
"""
