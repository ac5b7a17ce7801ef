"""``kvctl``: etcdctl's commands, flags, outputs and exit codes, for scripts that parse them.

What is where: ``cli`` is the entry; ``tree`` declares commands and flags; ``commands`` and ``flags`` find and parse
them as etcdctl does; ``usage`` writes help; ``settings`` turns flags and environment into a connection;
``transport`` is a blocking client; one module a command; one printer a format.

A command line tool is started often and lives shortly, so nothing here imports an event loop, and a command's module is
imported only when it runs. Texts are compared with the genuine etcdctl 3.5.1 by ``tests/ctl``.
"""
