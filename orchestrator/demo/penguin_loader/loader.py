"""Read the Palmer penguins table: measurements as numbers, missing ones as None."""

import csv

MEASUREMENTS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")


def parse_number(cell):
    """Return the measurement in a cell, or None when it is missing."""
    if cell == "":
        return None
    return float(cell)


def load(path):
    """Return the rows of a penguins CSV file, with numbers in the measurement columns."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for column in MEASUREMENTS:
            row[column] = parse_number(row[column])
    return rows


def mean(rows, column, species=None):
    """Return the mean of a measurement over the rows that have it, or None when no row has it."""
    values = [row[column] for row in rows if row[column] is not None and (species is None or row["species"] == species)]
    return sum(values) / len(values) if values else None
