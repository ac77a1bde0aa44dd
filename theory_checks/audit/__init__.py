"""A randomised audit of the verdicts: `python -m theory_checks.audit [--networks N] [--seed S]`.

Random networks, among them those that tempt a method to guess, are judged by `lopjax.stability` and, independently,
in long double. What is printed: verdicts and counts that the long double contradicts (there must be none), and how
often the library says that it does not know.
"""
