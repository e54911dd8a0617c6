"""Recorded data of other formats as stores, and back: arrays, CSV, parquet, HDF5, LeRobot and video.

A *source* (`worldmodel.data.formats.rows.Source`) yields pieces of rows; `worldmodel.data.formats.conversion` reads it twice:
once to check every row and to infer the spaces, and once to write the store. The functions are exported by `worldmodel.data`.
"""
