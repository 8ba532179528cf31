"""`distill annotate`: literate Python as a site, notes on the left and code on the right.

`sections` splits a file into notes and the code they describe, `names` finds what each name means
across files, `notes` renders Markdown, `mathml` its formulas, `page` one file, `site` all of them.
"""

from distillation.annotate.site import Problem, annotate

__all__ = ["Problem", "annotate"]
