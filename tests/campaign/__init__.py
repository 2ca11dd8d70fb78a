"""A campaign against edgekit: many named, seeded attacks through the command line, each watched.

    cd tests && python -m campaign                 a sample of every kind, about ten minutes
    cd tests && python -m campaign --long          all of it, hours
    python -m campaign --only bundles --case NAME --seed 1      one case again

Every module but these yields the attacks on one subject: `kills`, `store`, `bundles`, `models`,
`weights`, `texts`. `base` makes the one real run that they all start from, `alter` holds the ways
to spoil bytes and files, `watch` runs a program and watches it, `attack` says what an outcome is,
`runner` tries the attacks and writes the table.

Every attack is a process of its own through the very command line. That costs half a second where
TensorFlow is not needed, so hundreds take minutes, and a crash, a hang or a gigabyte of memory
belongs to one attack and leaves nothing behind for the next. Only most of the altered model files
go through `campaign.hurried`, the same command line with shorter latency sessions: a file that is
judged at all would be timed for ten seconds, which tells nothing about the alteration; every tenth
and every crafted one goes through the command line as it is.

Linux only: what a process and its descendants hold is read from /proc.
"""
