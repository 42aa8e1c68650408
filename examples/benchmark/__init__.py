"""Networks that learn their symmetry beside whatever else a user could pick, on questions whose symmetry is broken by
degrees.

``run.py`` trains and stores the runs, ``write.py`` makes tables, figure and page of them.
"""
