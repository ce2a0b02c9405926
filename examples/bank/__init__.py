"""
A small bank, laid out as we recommend it. Read it in this order:

`domain` (accounts and transfers), `port` (what the application asks of its store), `service` (the use cases),
`adapters` (the port on a database and on the fake), `container` (how it is all put together), and `cli`, which is the
command ``uow demo``. Its tests stand in ``examples/tests``.
"""
