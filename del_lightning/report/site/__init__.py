"""Many leaderboards as one static site that works from a folder.

runs         find and read the leaderboards; each becomes a run with a page of its own
pareto       who is beaten in everything by nobody
overview     the tables across runs
figures      utility against the strongest attack, run by run
claims       how a claim of the paper is held against measured rows
coverage     what of the paper the runs behind a verdict cover, what is missing, and whose code made them
replication  every table and figure of the paper, and what our runs say to it
pages        the pages, and ``write_site``
"""

from del_lightning.report.site.pages import write_site
from del_lightning.report.site.runs import Found, Run, load

__all__ = ["Found", "Run", "load", "write_site"]
