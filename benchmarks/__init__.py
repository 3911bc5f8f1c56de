"""What raftsvc costs and gives, beside etcd and PySyncObj on the same machine in the same run.

    make bench                      everything, five rounds: about an hour and a half
    make bench ARGS="--quick"       two minutes, to see that it works
    make bench ARGS="costs"         restarting, snapshots, dead and hung peers, catching up
    make bench ARGS="--against REV" this version and that of a git revision, in turns: a quarter of an hour
    python -m benchmarks --help     what can be chosen

Every system is measured from inside a web process under gunicorn, by threads
that do what a request handler would.  Rounds alternate the systems, and what is
reported is the median of the rounds.  Linux only: processes are read in /proc.

    web         the WSGI application that every web process runs, whatever is behind it
    load        the closed loop inside it
    http_load   the load generator outside it
    statuses    a command of its own: what clients are answered when there are many more of them than threads
    attached    another: several processes of a host, what an attached one costs, and takeovers
    systems/    one module a system: how it starts, and how a handler writes and reads through it
    runner      rounds, cases, and the checks after each
    costs       what restarting, snapshots, dead peers and catching up cost; counting, watching and locking by its side
    against     two versions of raftsvc: where each comes from, turns, and the tables
    paired      what the turns say: ratios, intervals, verdicts
    usage       processor time, wake-ups and system calls of processes
    report      the tables; plot makes the picture
"""
