from loader import load, mean, parse_number

HEADER = "species,island,bill_length_mm,bill_depth_mm,flipper_length_mm,body_mass_g,sex,year\n"
FIRST = "Adelie,Torgersen,39.1,18.7,181,3750,male,2007\n"
SECOND = "Gentoo,Biscoe,46.1,13.2,211,4500,female,2007\n"
MISSING = "Adelie,Torgersen,NA,NA,NA,NA,NA,2007\n"


def table(tmp_path, *lines):
    path = tmp_path / "penguins.csv"
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    return path


def test_a_number_is_read():
    assert parse_number("39.1") == 39.1


def test_an_empty_cell_is_missing():
    assert parse_number("") is None


def test_complete_rows_are_loaded(tmp_path):
    rows = load(table(tmp_path, FIRST, SECOND))
    assert [row["body_mass_g"] for row in rows] == [3750.0, 4500.0]


def test_a_row_without_measurements_is_loaded(tmp_path):
    rows = load(table(tmp_path, FIRST, MISSING))
    assert rows[1]["flipper_length_mm"] is None


def test_missing_values_do_not_change_the_mean(tmp_path):
    rows = load(table(tmp_path, FIRST, MISSING, SECOND))
    assert mean(rows, "body_mass_g") == 4125.0
