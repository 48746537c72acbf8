"""Text files of points as other programs write them: read exactly, or refused for the right reason."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointadapterx.datasets.formats.columns import columns_of_text, named
from pointadapterx.datasets.point_files import Reading, load_cloud, read_cloud
from pointadapterx.errors import DataError

WANTED = [[0.5, 1.5, 2.5], [1.0, -2.0, 3.25]]
ROWS = "0.5,1.5,2.5\n1,-2,3.25\n"
SPACED = ROWS.replace(",", " ")

READ = {
    "pandas without names": "0,1,2\n" + ROWS,
    "pandas with an index": ",0,1,2\n0,0.5,1.5,2.5\n1,1,-2,3.25\n",
    "pandas with tabs": "\t0\t1\t2\n0\t0.5\t1.5\t2.5\n1\t1\t-2\t3.25\n",
    "pandas and a label": "0,1,2,label\n0.5,1.5,2.5,chair\n1,-2,3.25,chair\n",
    "pandas, index and names": ",x,y,z\n0,0.5,1.5,2.5\n1,1,-2,3.25\n",
    "R": '"x" "y" "z"\n"1" 0.5 1.5 2.5\n"2" 1 -2 3.25\n',
    "R without names": "V1,V2,V3\n" + ROWS,
    "ParaView": '"intensity","Points:0","Points:1","Points:2"\n7,0.5,1.5,2.5\n8,1,-2,3.25\n',
    "ParaView, other mark": "Points_0,Points_1,Points_2,Normals_0\n0.5,1.5,2.5,7\n1,-2,3.25,7\n",
    "map": "id,Easting,Northing,Height\n17,0.5,1.5,2.5\n18,1,-2,3.25\n",
    "map, single letters": "N;E;H\n1.5;0.5;2.5\n-2;1;3.25\n",
    "map, height alone": "X,Y,Elev (m)\n" + ROWS,
    "units": "t,X [m],Y [m],Z [m]\n9,0.5,1.5,2.5\n9,1,-2,3.25\n",
    "units between spaces": "t X [m] Y [m] Z [m]\n9 0.5 1.5 2.5\n9 1 -2 3.25\n",
    "units in a line": "X;Y;Z\n[m];[m];[m]\n" + ROWS.replace(",", ";"),
    "another order": "nx,ny,nz,z,y,x\n7,7,7,2.5,1.5,0.5\n7,7,7,3.25,-2,1\n",
    "words before": "pos_y pos_x pos_z\n1.5 0.5 2.5\n-2 1 3.25\n",
    "title before names": "Scan 12 of today\n\nX,Y,Z\n" + ROWS,
    "CloudCompare": "//X Y Z R G B\n2\n0.5 1.5 2.5 7 7 7\n1 -2 3.25 7 7 7\n",
    "names in a comment": "# exported\n# i x y z\n7 0.5 1.5 2.5\n7 1 -2 3.25\n",
    "prose in a comment": "# made by hand\n" + SPACED,
    "commas below spaces": "x y z\n" + ROWS,
    "decimal commas, semicolons": "0,5;1,5;2,5\n1;-2;3,25\n",
    "decimal commas, spaces": "0,5 1,5 2,5\n1 -2 3,25\n",
    "decimal commas, tabs": "0,5\t1,5\t2,5\n1\t-2\t3,25\n",
    "decimal commas, bars": "0,5|1,5|2,5\n1|-2|3,25\n",
    "decimal commas, quoted": '"0,5","1,5","2,5"\n"1","-2","3,25"\n',
    "quoted": '"0.5","1.5","2.5"\n"1","-2","3.25"\n',
    "single quotes": "'0.5' '1.5' '2.5'\n'1' '-2' '3.25'\n",
    "separators in quotes": 'who,x,y,z\n"Smith, J",0.5,1.5,2.5\n"7,7,7,7",1,-2,3.25\n',
    "bars": ROWS.replace(",", "|"),
    "commas and spaces": ROWS.replace(",", " , "),
    "aligned": "  0.5   1.5   2.50\n  1    -2     3.25\n",
    "separators at the end": "x,y,z\n0.5,1.5,2.5,\n1,-2,3.25,\n",
    "old line ends": SPACED.replace("\n", "\r"),
    "line ends of Windows": "x,y,z\r\n" + ROWS.replace("\n", "\r\n"),
    "no line end": SPACED.rstrip(),
    "other blank lines": "x y z\n0.5 1.5 2.5\n\f\n\t \n1 -2 3.25\n",
    "comments and blank lines": "\n# one\n// two\n0.5 1.5 2.5\n\n% three\n1 -2 3.25 # four\n",
    "colours with a #": "x,y,z,c\n0.5,1.5,2.5,#ff0000\n1,-2,3.25,#00ff00\n",
    "count": "2\n" + SPACED,
    "scans after each other": "1\n0.5 1.5 2.5\n1\n1 -2 3.25\n",
    "times": "2026-01-01 12:00:00,0.5,1.5,2.5\n2026-01-01 12:00:01,1,-2,3.25\n".replace("2026", "time,x,y,z\n2026", 1),
    "exponents": "5e-1 1.5E0 +2.5\n1 -2 3.25\n",
}


def write(folder: Path, text: str | bytes, suffix: str = ".csv") -> Path:
    path = folder / f"cloud{suffix}"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("kind", READ)
def test_read(kind: str, tmp_path: Path) -> None:
    assert read_cloud(write(tmp_path, READ[kind]), 1, 0).tolist() == WANTED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    text = "Höhe;x;y;z\n7;0.5;1.5;2.5\n7;1;-2;3.25\n"
    assert read_cloud(write(tmp_path, text.encode(encoding)), 1, 0).tolist() == WANTED


@pytest.mark.parametrize("suffix", [".asc", ".pts", ".txt", ".xyz"])
def test_suffixes(suffix: str, tmp_path: Path) -> None:
    assert read_cloud(write(tmp_path, "2\n" + SPACED, suffix), 1, 0).tolist() == WANTED


def test_whole_numbers(tmp_path: Path) -> None:
    """What may be a point or the numbers of the columns is a point between spaces alone."""
    assert len(read_cloud(write(tmp_path, "0 1 2\n3 4 5\n"), 1, 0)) == 2
    pandas = load_cloud(write(tmp_path, "0,1,2\n3,4,5\n"), 1, 0)
    assert pandas.points.tolist() == [[3, 4, 5]]
    (doubt,) = pandas.doubts
    assert doubt.text.startswith("its first row, '0,1,2', is read as numbers of columns, as pandas writes them")
    assert doubt.text.endswith("to keep it, give data.columns=[0,1,2] or --columns 0,1,2")
    assert len(load_cloud(write(tmp_path, "0,1,2\n3,4,5\n"), 1, 0, Reading((0, 1, 2))).points) == 2
    for surely_names in (",0,1,2\n0,3,4,5\n", "0,1,2\n3.5,4,5\n"):
        assert load_cloud(write(tmp_path, surely_names), 1, 0).doubts == ()
    assert len(read_cloud(write(tmp_path, "0,1,2\n"), 1, 0)) == 1


INDEX = "".join(f"{row},0.5,{row / 4},7\n" for row in range(12))
WAY_OUT = "; say which are x, y and z, by name or by number from 0: data.columns=[A,B,C] in a config, --columns A,B,C"
REFUSED = {
    "unknown names": ("GPSTIME,a,b,c\n1,2,3,4\n", "its columns are GPSTIME, a, b, c, of which no three are known"),
    "degrees": ("lat,lon,alt\n1,2,3\n", "its columns are lat, lon, alt, of which no three are known"),
    "degrees in a comment": ("# lat lon alt\n1 2 3\n", "its columns are lat, lon, alt, of which no three are known"),
    "two kinds of x": ("pos_x,pos_y,pos_z,world_x,world_y,world_z\n1,2,3,4,5,6\n", "of which more than three may be"),
    "x twice": ("x,x,y,z\n1,2,3,4\n", "its columns are x, x, y, z, of which more than three may be"),
    "fewer names": ("x y z\n1 2 3 4 5\n2 3 4 5 6\n", "it names 3 columns (x, y, z), but its rows have 5"),
    "an index": (INDEX, "its first column counts the rows, so x, y and z lie elsewhere, and nothing names them"),
    "time first": ("12:00:00,1,2,3\n", "it names no columns, and of '12:00:00,1,2,3' the cells (0, 1, 2) are not all"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_columns_that_nothing_names_are_refused(kind: str, tmp_path: Path) -> None:
    text, says = REFUSED[kind]
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_cloud(path, 1, 0)
    assert f"{path}: " in str(error.value)
    assert says in str(error.value)
    assert WAY_OUT in str(error.value)
    assert "\n" not in str(error.value)


DAMAGED = {
    "fewer points": ("3\n" + SPACED, "line 1 declares 3 points, and there are 2"),
    "more points": ("1\n" + SPACED, "line 1 declares 1 points, and there are 2"),
    "no points": ("x,y,z\n7\n", "line 2 declares 7 points, and there are 0"),
    "CloudCompare, cut": ("//X Y Z\n9\n" + SPACED, "line 2 declares 9 points, and there are 2"),
    "a scan, cut": (
        "2\n0.5 1.5 2.5\n1\n1 -2 3\n",
        "line 1 declares 2 points, and there are 1 before line 3, where the next scan begins",
    ),
    "the last scan, cut": ("1\n0.5 1.5 2.5\n2\n1 -2 3\n", "line 3 declares 2 points, and there are 1"),
    "a shorter row": ("1 2 3\n4 5 6\n7 8\n", "line 3 has 2 columns, the lines before it 3"),
    "a longer row": ("1,2,3\n4,5,6\n\n7,8,9,9\n", "line 4 has 4 columns, the lines before it 3"),
    "rows run together": ("1 2 3\n4 5 61 2 3\n", "line 2 has 5 columns, the lines before it 3"),
    "no number": ("1,2,3\n1,?,3\n", "line 2: '?' is no number"),
    "decimal marks mixed": ("1.5;2;3\n1;2,5;3\n", "line 2: '2,5' is no number; the fractions before it are written"),
    "separators mixed": ("1, 2 3\n4, 5 6\n", "'4, 5 6' is no row of three numbers; separators or decimal marks may"),
    "two columns": ("1 2\n3 4\n", "'3 4' is no row of three numbers"),
    "an underscore": ("1 2 3\n1_0 2 3\n", "line 2: '1_0' is no number"),
    "zero bytes": ("1 2 3\n\0\0\0\0", "it is binary, not text"),
    "tabs alone": ("\t\t\t\n", "there is no row of three numbers in it"),
    "prose": ("read me\nbefore use\n", "there is no row of three numbers in it"),
    "no line end": ("1 " * 2**18, "its first line has no end"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged(kind: str, tmp_path: Path) -> None:
    text, says = DAMAGED[kind]
    with pytest.raises(DataError) as error:
        read_cloud(write(tmp_path, text), 1, 0)
    assert f"cannot be read as .csv ({says}" in str(error.value)
    assert "\n" not in str(error.value)


def test_damage_far_below_is_named_by_its_line(tmp_path: Path) -> None:
    rows = ["1 2 3", *["1.5 2.5 3.5"] * 200_000, "1.5 2.5", "1 2 3"]
    with pytest.raises(DataError, match="line 200002 has 2 columns, the lines before it 3"):
        read_cloud(write(tmp_path, "\n".join(rows)), 1, 0)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("East 1", "North 1", "Up 1"), [[2, 3, 4]]),
        ((1, 2, 3), [[2, 3, 4]]),
        (("north 1", 0, 3), [[3, 1, 4]]),
        (("West", 0, 3), "it has no column West; its 4 columns are id, East 1, North 1, Up 1"),
        ((0, 1, 4), "it has no column 4; its 4 columns are id, East 1, North 1, Up 1"),
    ],
)
def test_columns_that_the_user_names(columns: tuple[str | int, ...], expected: object, tmp_path: Path) -> None:
    path = write(tmp_path, "id,East 1,North 1,Up 1\n1,2,3,4\n")
    if isinstance(expected, str):
        with pytest.raises(DataError) as error:
            load_cloud(path, 1, 0, Reading(columns))
        assert expected in str(error.value)
    else:
        assert load_cloud(path, 1, 0, Reading(columns)).points.tolist() == expected


def test_columns_without_names_and_against_them(tmp_path: Path) -> None:
    path = write(tmp_path, INDEX)
    assert load_cloud(path, 1, 0, Reading((1, 2, 3))).points[1].tolist() == [0.5, 0.25, 7]
    with pytest.raises(DataError, match="it names no columns, so no column is called 'x'; give numbers from 0"):
        load_cloud(path, 1, 0, Reading(("x", "y", "z")))
    path = write(tmp_path, "id,x,y,z\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"columns called x, y and z are \(1, 2, 3\), not \(0, 1, 2\) as given"):
        load_cloud(path, 1, 0, Reading((0, 1, 2)))
    path = write(tmp_path, "x y z\n1 2 3 4 5\n2 3 4 5 6\n")
    assert load_cloud(path, 1, 0, Reading((2, 3, 4))).points[0].tolist() == [3, 4, 5]
    assert columns_of_text("East, 2,North") == ("East", 2, "North")


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ("X,Y,Z,Height", (0, 1, 2)),
        ("coord[0],coord[1],coord[2]", (0, 1, 2)),
        ("point1,point2,point3", (0, 1, 2)),
        ("x_m,y_m,z_m", (0, 1, 2)),
        ("t,xcoord,ycoord,zcoord", (1, 2, 3)),
        ("P,Northing (m),Easting (m),Z", (2, 1, 3)),
        ("Rechtswert,Hochwert,Höhe", (0, 1, 2)),
        ("intensity,Points_m_XYZ:0,Points_m_XYZ:1,Points_m_XYZ:2", (1, 2, 3)),
        ("Normals:0,Normals:1,Normals:2,Points:0,Points:1,Points:2", (3, 4, 5)),
    ],
)
def test_usual_names(names: str, columns: tuple[int, int, int]) -> None:
    assert named(names.split(",")) == columns


def test_missing_values_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "x,y,z,w\n,,,\n0.5,1.5,2.5,\n1,NA,3,7\n1,-2,3.25,nan\n4,5,inf,7\n")
    cloud = load_cloud(path, 1, 0)
    assert cloud.points.tolist() == WANTED
    assert [doubt.text for doubt in cloud.doubts] == ["3 of 5 points have NaN or infinite coordinates and are left out"]
    with pytest.raises(DataError, match=r"point 1 has NaN or infinite coordinates, as 3 of 5 have; .* --nan drop"):
        read_cloud(path, 1, 0)
    with pytest.raises(DataError, match="all 1 points have NaN or infinite coordinates"):
        load_cloud(write(tmp_path, "x,y,z\n1,,3\n"), 1, 0)


@pytest.mark.parametrize("names", ["a,_{}b,c", "a,b,[{}", "a1,a2,1{}x", "a,b,-{}é", "#a,b,[{}", "x [{}"])
def test_names_without_end_are_refused_soon(names: str, tmp_path: Path) -> None:
    before = names.partition("{")[0]
    long = names.format(before[-1] * 120_000)
    path = write(tmp_path, f"{long}\n" + "1.5,2.5,3.5\n" * 3)
    start = time.monotonic()
    with pytest.raises(DataError):
        load_cloud(path, 1, 0)
    assert time.monotonic() - start < 5


CELL = st.one_of(
    st.sampled_from(
        ["1", "2.5", "-3e5", "1,5", "x", "Points:0", '"', "'1'", "nan", "", "0", "#", "//", "n_1", "1e999"]
    ),
    st.text(max_size=4),
)
LINE = st.builds(lambda cells, mark: mark.join(cells), st.lists(CELL, max_size=7), st.sampled_from(" ,;\t|"))


@given(st.one_of(st.lists(LINE, max_size=9).map(lambda lines: "\n".join(lines).encode()), st.binary(max_size=90)))
@settings(max_examples=60, deadline=None, database=None)
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    reason, points = "", np.zeros(0)
    try:
        points = load_cloud(path, 1, 0).points
    except DataError as error:
        reason = str(error)
    assert "\n" not in reason
    assert "IndexError" not in reason
    assert np.isfinite(points).all()
