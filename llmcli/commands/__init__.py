"""One file per verb: parse, call one function of the library, print. Only here and in cli.py live click and rich."""
