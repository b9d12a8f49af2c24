"""Methods: weights, and perhaps calibration data, become codes and scales. Reading order:

rtn       round each weight to its nearest level
registry  the methods by name, and the rows of the table
"""
