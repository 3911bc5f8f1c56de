"""What raftsvc costs and gives, beside etcd and PySyncObj on the same machine in the same run.

    make bench                      everything, five rounds: about an hour and a half
    make bench ARGS="--quick"       two minutes, to see that it works
    make bench ARGS="costs"         restarting, snapshots, dead and hung peers, catching up
    python -m benchmarks --help     what can be chosen

Every system is measured from inside a web process under gunicorn, by threads
that do what a request handler would.  Rounds alternate the systems, and what is
reported is the median of the rounds.  Linux only: processes are read in /proc.

    web         the WSGI application that every web process runs, whatever is behind it
    load        the closed loop inside it
    http_load   the load generator outside it
    systems/    one module a system: how it starts, and how a handler writes and reads through it
    runner      rounds, cases, and the checks after each
    costs       what restarting, snapshots, dead peers and catching up cost
    report      the tables; plot makes the picture
"""
