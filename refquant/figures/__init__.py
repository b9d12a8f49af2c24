"""Figures of the course: data in, a `matplotlib.figure.Figure` out. One module a notebook stem.

    style   the look that all share; a figure as PNG bytes, as a notebook's output, as HTML for a widget
    canvas  what makes it quick to draw a figure again

No function keeps or changes anything outside its figure (pyplot is not used). What a widget redraws takes less than
200 ms, PNG included. Arithmetic with a name of its own is elsewhere in the package.
"""
