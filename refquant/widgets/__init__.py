"""Interactive views of the course, for notebooks only: nothing in refquant imports them, and they compute nothing.

    explorer  sliders and menus beside a figure that a function of the package draws
    quiz      questions with feedback for each wrong answer

One module a notebook stem holds its views. Every control has a readable label and works from the keyboard (Tab, arrow
keys, space).
"""
