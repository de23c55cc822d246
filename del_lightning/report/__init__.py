"""Results as typed records, and the pages made of them.

    schema   what a run stores: StageResult, Leaderboard, Sample
    words    numbers and sentences: three significant digits, the summary, the warnings, the guarantees in words
    tables   the leaderboard's columns, as Markdown and for the terminal
    plots    figures as inline SVG
    page     one self-contained HTML page, and ``write_report``

Nothing is imported here: a stage that only stores a result must not wait for matplotlib.
"""
