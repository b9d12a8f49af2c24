"""Assignments that grade themselves.

    exercise    what an exercise is: cases, the right answer, typical mistakes
    exercises   the exercises of the six assignments
    checking    check and grade
    worker      runs a student's code: a program of its own, in a process with limits
    sandbox     the grader's side of that process
    restore     each cell's settings as the teacher made them, whatever came back
    isolate     nbgrader's step that runs a notebook, replaced: students' cells in the sandbox, graded cells outside
    gradebook   an nbgrader course in a folder: release, grade
    rubric      points and known mistakes, as text

In a notebook: `classroom.check(function, "rtn.groups")` tries the visible cases and raises with the first wrong value.
"""

from refquant.classroom.checking import check, grade
from refquant.classroom.exercise import CodeFailed, WrongAnswer

__all__ = ["CodeFailed", "WrongAnswer", "check", "grade"]
