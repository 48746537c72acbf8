"""Odd files of every format: each is read exactly, or refused in words about what is wrong with it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pointadapterx.datasets.formats.mesh import Mesh
from pointadapterx.datasets.point_files import READERS, Cloud, load_cloud, read_cloud
from pointadapterx.errors import DataError
from tests.datasets.odd_files import (
    FACES,
    MATERIALS,
    OBJ,
    OFF,
    POINTS,
    READ,
    SOA,
    XYZ,
    Content,
    compressed,
    content,
    glb,
    h5,
    las,
    laz,
    lzf,
    npy,
    npz,
    pcd,
    ply,
    ply_faces,
    records,
    rows,
    stl,
    stl_text,
)


def skip_without_packages(suffix: str) -> None:
    for package in {"las": ("laspy",), "laz": ("laspy", "lazrs"), "glb": ("trimesh",)}.get(suffix, ()):
        pytest.importorskip(package, exc_type=ImportError)


@pytest.mark.parametrize("name", READ)
def test_read_exactly(name: str, tmp_path: Path) -> None:
    data, expected = READ[name]
    suffix = name.split()[0]
    skip_without_packages(suffix)
    path = tmp_path / f"cloud.{suffix}"
    path.write_bytes(content(data))
    found = READERS[f".{suffix}"](path)
    if isinstance(found, Cloud):
        found = found.points
    elif isinstance(found, Mesh):
        found = np.asarray(found.vertices, np.float64)[found.faces]
    assert found.shape == expected.shape
    assert np.array_equal(found, expected) or (suffix in ("las", "laz") and np.allclose(found, expected, atol=1e-9))
    if expected.ndim == 2:
        assert np.array_equal(read_cloud(path, 10, 0), found.astype(np.float64))


@pytest.mark.parametrize(
    ("suffix", "before"), [("pcd", pcd().decode()), ("ply", ply("").decode()), ("off", "OFF\n4 0 0\n"), ("xyz", "")]
)
def test_nan_as_programs_of_windows_write_it(suffix: str, before: str, tmp_path: Path) -> None:
    path = tmp_path / f"cloud.{suffix}"
    path.write_text(before + rows(POINTS[:3]) + "-nan(ind) nan(ind) 1\n", encoding="utf-8")
    cloud = load_cloud(path, 10, 0)
    assert np.array_equal(cloud.points, POINTS[:3])
    assert [doubt.text for doubt in cloud.doubts] == ["1 of 4 points have NaN or infinite coordinates and are left out"]


def with_large_chunks() -> bytes:
    """A LAZ file whose chunks are said to be of two billion points, though it has four."""
    data = laz()
    return data.replace((50_000).to_bytes(4, "little"), b"\xff\xff\xff\x7f", 1)


def with_large_layers() -> bytes:
    """A LAZ file whose first chunk says, behind its first point and number of points, that its layers are large."""
    data = laz(7)
    start = int.from_bytes(data[96:100], "little") + 8 + 36 + 4
    return data[:start] + b"\xff" * 8 + data[start + 8 :]


# Name: the file, and words of the message.
REFUSED: dict[str, tuple[Content, str]] = {
    "pcd fewer rows": (pcd() + rows(POINTS[:3]).encode(), "declares 4 points, and 3 rows follow"),
    "pcd more rows": (pcd(points=3) + rows(POINTS).encode(), "declares 3 points, and 4 rows follow"),
    "pcd a row cut": (pcd() + rows(POINTS).encode()[:-7], "point 4 of 4 has 2 numbers, expected 3"),
    "pcd a word": (pcd() + rows(POINTS).replace("-3.5", "a_b").encode(), "point 4 of 4 has 'a_b' in place of a number"),
    "pcd other columns": (pcd() + rows(POINTS, after=" 1").encode(), "3 numbers for a point, and its rows have 4"),
    "pcd contradiction": (pcd(WIDTH=2, HEIGHT=3), "WIDTH 2 and HEIGHT 3 and POINTS 4, which contradict"),
    "pcd fewer sizes": (pcd(size="4 4"), "3 FIELDS and 2 of SIZE"),
    "pcd two x": (pcd(fields="x x z"), "its fields are x x z"),
    "pcd half floats": (pcd(size="2 4 4"), "field x has TYPE F and SIZE 2"),
    "pcd negative": (pcd(points="-4"), "its WIDTH is '-4', expected a number"),
    "pcd another kind of data": (pcd(DATA="binary_zstd"), "its DATA are 'binary_zstd'"),
    "pcd no data": (pcd().replace(b"DATA ascii\n", b""), "its header has no line DATA"),
    "pcd binary cut": (pcd(DATA="binary") + records(XYZ)[:-1], "declares 4 points in 48 bytes, and 47 bytes follow"),
    "pcd binary, more": (pcd(DATA="binary") + records(XYZ) * 2, "declares 4 points in 48 bytes, and 96 bytes follow"),
    "pcd binary, a billion": (pcd(points=10**15, DATA="binary") + records(XYZ), "12000000000000000 bytes, and 48"),
    "pcd compressed, cut": (
        pcd(DATA="binary_compressed") + compressed(SOA)[:-1],
        "declares 4 points in 50 bytes, and 49 bytes follow",
    ),
    "pcd compressed, of others": (
        pcd(DATA="binary_compressed") + compressed(SOA[:-4]),
        "declares 4 points in 48 bytes, and its compressed data 44",
    ),
    "pcd compressed, damaged": (
        pcd(DATA="binary_compressed") + compressed(SOA, b"\x2f\x2f\x2f"),
        "its compressed data are damaged at byte 2 of 3",
    ),
    "pcd compressed, shorter than it says": (
        pcd(DATA="binary_compressed") + compressed(SOA, lzf(SOA[:-1])),
        "declares 48 bytes, and 47 are in it",
    ),
    "pcd compressed, a bomb": (
        pcd(points=10**8, DATA="binary_compressed") + struct.pack("<II", 3, 1_200_000_000) + b"\x00\x00\x00",
        "its 3 compressed bytes cannot be the 1200000000",
    ),
    "ply text, fewer rows": (ply(rows(POINTS) + FACES[:16], face=4), "4 of vertex and 4 of face rows, and 6 follow"),
    "ply text, more rows": (
        ply(rows(POINTS), points="float x,float y,float z") + b"1 2 3\n",
        "4 of vertex rows, and 5",
    ),
    "ply text, a longer row": (ply(rows(POINTS[:3]) + "1 2 3 4\n"), "vertex 4 of 4 has 4 numbers, expected 3"),
    "ply text, a list cut": (
        ply(rows(POINTS) + FACES.replace("3 2 0 3", "3 2 0"), face=4),
        "face 4 of 4 has 3 numbers",
    ),
    "ply binary, cut": (
        ply((records(XYZ) + ply_faces())[:-1], "binary_little_endian", face=4),
        "face 4 of 4 has a list vertex_indices of 3 numbers, and 12 bytes follow",
    ),
    "ply binary, longer": (
        ply(records(XYZ) + b"\n", "binary_little_endian"),
        "its header declares 48 bytes of data, and 49 follow",
    ),
    "ply binary, a billion": (
        ply(records(XYZ), "binary_little_endian", face=10**9),
        "declares 1000000000 rows of face, of 1000000000 bytes at least, and 0 follow",
    ),
    "ply a face beyond": (ply(rows(POINTS) + "3 0 1 4\n", face=1), "a face names vertex 4, and its 4 vertices"),
    "ply a negative face": (ply(rows(POINTS) + "3 0 1 -1\n", face=1), "a face names vertex -1"),
    "ply half a vertex": (ply(rows(POINTS) + "3 0 1 1.5\n", face=1), "vertex_indices 1.5 is no whole number"),
    "ply an unknown type": (
        ply(rows(POINTS), points="quad x,float y,float z"),
        "its header has the line 'property quad x'",
    ),
    "ply no end": (ply(rows(POINTS)).replace(b"end_header", b"end_head"), "its header has the line 'end_head'"),
    "ply two formats": (ply("").replace(b"comment made by hand", b"format ascii 1.0"), "the line 'format ascii 1.0'"),
    "off fewer rows": (OFF[:-8], "declares 4 vertices and 4 faces, and 7 rows follow"),
    "off more rows": (OFF + "3 0 1 2\n", "declares 4 vertices and 4 faces, and 9 rows follow"),
    "off a face cut": (OFF[:-3], "face 4 of 4 has 3 numbers, expected 4"),
    "off a face cut among others": (OFF.replace("3 2 0 3", "4 2 0 3"), "face 4 of 4 has 3 numbers behind '4'"),
    "off a face beyond": (OFF.replace("3 2 0 3", "3 2 0 4"), "a face names vertex 4"),
    "off a vertex cut": (OFF.replace("0 2 0\n", "0 2\n"), "vertex 3 of 4 has 2 numbers, expected 3"),
    "off no counts": ("OFF\n", "ends before its numbers of vertices and faces"),
    "off other counts": ("OFF\n4 four 6\n" + rows(POINTS), "it has '4 four 6' in place of its numbers"),
    "obj a face beyond": (OBJ + "f 1 2 5\n", "a face names vertex 4, and its 4 vertices count from 0"),
    "obj before the first": ("v 0 0 0\nf -1 -2 -3\n", "line 2 names vertex -2, and there are 1 before it"),
    "obj vertex 0": (OBJ + "f 0 1 2\n", "line 9 names vertex 0"),
    "obj a vertex beyond all bounds": (
        OBJ + f"f 1 2 {10**20}\n",
        "line 9 names vertex 100000000000000000000, and there",
    ),
    "obj cut in a face": (OBJ[:-3], "line 8 is a face of 2 corners"),
    "obj a vertex cut": ("v 1 2\n", "line 1 is a vertex of 2 coordinates"),
    "obj a word": ("v 1 2 x\n", "line 1 has 'x' in place of a number"),
    "obj a curved surface": (rows(POINTS, "v ") + "cstype bspline\nsurf 0 1 0 1 1 2 3 4\n", "part of a curved surface"),
    "stl cut": (stl()[:-1], "declares 4 triangles in 284 bytes, and has 283 bytes"),
    "stl longer": (stl() + b"\0", "declares 4 triangles in 284 bytes, and has 285 bytes"),
    "stl longer, named like text": (stl(head=b"solid") + b"\0", "declares 4 triangles in 284 bytes, and has 285"),
    "stl a billion": (stl(declared=10**9), "declares 1000000000 triangles"),
    "stl text, cut": (stl_text()[:-30], "it ends without 'endsolid'"),
    "stl text, a facet cut": (stl_text().replace(" endloop\nendfacet\nendsolid", "endsolid"), "facet 4 is cut"),
    "stl text, a quad": (stl_text().replace(" endloop", "  vertex 1 2 3\n endloop", 1), "expected a normal and three"),
    "glb cut": (glb()[:-4], "it declares"),
    "glb other length": (glb(length=10**9), "it declares 1000000000 bytes, and has"),
    "glb a buffer cut": (glb(binary=bytes(40)), "accessor 0 declares 4 entries in 48 bytes of buffer view 0"),
    "glb buffer longer": (glb({"buffers.0.byteLength": 10**9}), "buffer 0 declares 1000000000 bytes, and 72 are there"),
    "glb accessor longer": (
        glb({"accessors.0.count": 5}),
        "accessor 0 declares 5 entries in 60 bytes of buffer view 0",
    ),
    "glb a billion": (
        glb({"accessors.0": {"componentType": 5126, "type": "VEC3", "count": 10**9}}),
        "it shows its arrays",
    ),
    "glb a face beyond": (glb({"accessors.0.count": 3}), "a face names vertex 3, and its 3 vertices"),
    "glb Draco": (
        glb({"extensionsRequired": ["KHR_draco_mesh_compression"]}),
        "compressed with Draco (KHR_draco_mesh_compression), and there is no decoder for it here",
    ),
    "glb Draco, not required": (
        glb(
            {
                "meshes.0.primitives.0.extensions": {"KHR_draco_mesh_compression": {}},
                "accessors.0": {"componentType": 5126, "type": "VEC3", "count": 4},
            }
        ),
        "compressed with Draco",
    ),
    "glb meshopt": (
        glb({"extensionsRequired": ["EXT_meshopt_compression"]}),
        "compressed with meshopt (EXT_meshopt_compression), and there is no decoder",
    ),
    "glb an unknown extension": (glb({"extensionsRequired": ["EXT_voxels"]}), "requires the extension 'EXT_voxels'"),
    "glb a circle": (glb({"nodes.0.children": [0]}), "its node 0 is the child of two nodes, or of itself"),
    "glb a stride beyond all bounds": (
        glb({"bufferViews.0.byteStride": 10**30, "accessors.0.count": 1}),
        "buffer view 0 has rows of 12 bytes at every 1000",
    ),
    "glb no mesh": (glb({"nodes.0.mesh": -1}), "it names number -1 of its 1 meshes"),
    "glb no position": (glb({"meshes.0.primitives.0.attributes": {}}), "its JSON lacks or mistakes 'POSITION'"),
    "las cut at a record": (las(cut=20), "declares 4 points, and 3 are there"),
    "las cut in a record": (las(cut=5), "declares 4 points, and 3 are there"),
    "las more": (las(points=3), "declares 3 points, and 4 are there"),
    "las 1.4, other counts": (las(minor=4, head={107: b"\3\0\0\0"}), "declares 4 points, and 3 for older programs"),
    "las a billion records before": (las(head={100: struct.pack("<I", 10**9)}), "declares 1000000000 records before"),
    "las a billion records behind": (
        las(minor=4, head={235: struct.pack("<QI", 375, 10**9)}),
        "declares 1000000000 extended records from byte 375",
    ),
    "las points beyond": (las(head={96: struct.pack("<I", 10**6)}), "its points begin at byte 1000000"),
    "las another record": (las(kind=3), "format 3 in 20 bytes each, which cannot be"),
    "las no scale": (las(head={131: bytes(8)}), "its scales are [0.0, 0.001, 0.001]"),
    "las version": (las(head={25: b"\x09"}), "its version is 1.9"),
    "laz cut": (lambda: laz()[:-20], "its table of chunks is said to be at byte"),
    "laz fewer": (
        lambda: laz()[:107] + struct.pack("<I", 60_000) + laz()[111:],
        "declares 60000 points, and 1 chunks of 50000",
    ),
    "laz a billion": (
        lambda: laz()[:107] + struct.pack("<I", 10**9) + laz()[111:],
        "1000000000 points, which cannot be in",
    ),
    "laz another table of chunks": (lambda: laz()[:-4] + bytes(4), "its 1 chunks are said to have"),
    "laz chunks of gigabytes": (with_large_chunks, "its points are in chunks of 2147483647, which cannot be in"),
    "laz a layer of gigabytes": (
        with_large_layers,
        "layers of chunk 1 of 1 are said to have 85",
    ),
    "npy cut": (npy()[:-1], "declares float64 of shape (4, 3), 96 bytes, and 95 follow"),
    "npy two arrays": (npy() * 2, "declares float64 of shape (4, 3), 96 bytes, and 320 follow"),
    "npy a billion": (
        npy(header="{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3)}"),
        "24000000000000 bytes, and 96 follow",
    ),
    "npy a header cut": (npy(header="{'descr': '<f8', ("), "its header cannot be read"),
    "npz two that may be": (npz(xyz=POINTS, pos=POINTS), "its entries are xyz, pos, expected one called 'points'"),
    "npz cut": (npz(points=POINTS)[:-30], "cannot be read as .npz"),
    "npz a bomb": (lambda: npz(points=np.zeros((10**6, 3))), "compressed bytes are said to be 24000128"),
    "h5 cut": (h5(cut=8, data=POINTS), "truncated or damaged"),
    "h5 nothing written": (h5(shape=(10**9, 3), dtype="f8"), "24,000,000,000 bytes, but 0 are stored"),
    "h5 half written": (
        h5(shape=(10**9, 3), dtype="f8", chunks=(10**5, 3)),
        "but 0 of its 10000 chunks are in the file",
    ),
    "csv cut": ("x,y,z\n1,2,3\n4,5", "cannot be read as .csv"),
    "txt of prose": ("read me\nbefore use\n", "cannot be read as .txt"),
    "xyz of two columns": ("1 2\n3 4\n", "cannot be read as .xyz"),
    "pts of bytes": (b"\x89\xff\xfe\x00", "cannot be read as .pts"),
}


def reason(name: str, data: Content, folder: Path) -> str:
    """Why a file of a format is refused, in a line that begins with its path."""
    skip_without_packages(name.split()[0])
    path = folder / f"cloud.{name.split()[0]}"
    path.write_bytes(content(data))
    with pytest.raises(DataError) as error:
        read_cloud(path, 10, 0)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_the_right_reason(name: str, tmp_path: Path) -> None:
    data, says = REFUSED[name]
    assert says in reason(name, data, tmp_path)


WIDE = np.ones((3, 100))
RECORDS = np.frombuffer(records(XYZ), XYZ)
NOT_READ: dict[str, tuple[Content, str]] = {
    "npy transposed": (npy(WIDE), "it holds float64 of shape (3, 100), as if transposed; give a row to each point"),
    "npz transposed, six rows": (npz(points=np.ones((6, 17))), "it holds float64 of shape (6, 17), as if transposed"),
    "h5 transposed": (h5(data=WIDE), "it holds float64 of shape (3, 100), as if transposed"),
    "npy of two columns": (npy(POINTS[:, :2]), "it holds float64 of shape (4, 2), not numbers (points, 3 or more)"),
    "npy of four axes": (npy(np.ones((1, 2, 3, 3))), "it holds float64 of shape (1, 2, 3, 3), not numbers"),
    "npy of objects": (npy(np.array([{}])), "it holds Python objects, which are not read; save numbers"),
    "npy of other records": (
        npy(np.ones(3, [("x", "f4"), ("y", "f4")])),
        "its fields are x, y, expected one x, y and z",
    ),
    "npy of records of rows": (npy(np.ones(3, [(axis, "f4", 2) for axis in "xyz"])), "x, y and z are no numbers, one"),
    "npy organised": (npy(POINTS.reshape(2, 2, 3)), "its shape (2, 2, 3) may be one organised cloud or several clouds"),
    "npz of organised records": (npz(points=RECORDS.reshape(2, 2)), "its shape (2, 2) may be one organised cloud or"),
    "npz of other names": (npz(a=POINTS, b=POINTS), "its entries are a, b, expected one called 'points'; name it so"),
    "h5 of several clouds": (
        h5(data=np.ones((5, 4, 3))),
        "'points' holds 5 clouds, expected one in each file; read them by data.name=h5 (train, test, doctor, predict)",
    ),
    "obj utf-16": (OBJ.encode("utf-16"), "it is UTF-16 text; save it as UTF-8"),
    "off four dimensions": ("4OFF\n1 0 0\n1 2 3 4\n", "four or more coordinates"),
    "off binary": ("OFF BINARY\n" + "\0" * 40, "it is binary OFF"),
    "pcd no z": (pcd(fields="x y w"), "its fields are x y w, expected one x, y and z each; name them so"),
    "ply no z": (ply("", points="float x,float y,float w"), "its vertices have the properties x, y, w, expected one x"),
    "ply no vertex": (ply("").replace(b"vertex 4", b"corner 0"), "its elements are corner, expected vertex"),
    "glb another file": (glb({"buffers.0.uri": "mesh.bin"}), "in another file ('mesh.bin'); save it as one file"),
    "asc a grid of heights": ("ncols 3\nnrows 1\nxllcorner 0\n1 2 3\n", "it is an ESRI grid of heights, not a list"),
    "csv thousands": ("1.234,5;2;3\n", "it has thousands separators, as in 1.234,5; write the numbers without"),
    "csv thousands, quoted": ('x,y,z\n"1,234.5","2","3"\n', "it has thousands separators, as in 1,234.5; write"),
    "csv thousands, later": ("2,5;2;3\n1.234,5;2;3\n", "it has thousands separators, as in 1.234,5; write"),
    "txt thousands, apostrophes": ("1'234.5 2 3\n", "it has thousands separators, as in 1'234"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_whole_files_are_not_to_be_obtained_again(name: str, tmp_path: Path) -> None:
    data, says = NOT_READ[name]
    found = reason(name, data, tmp_path)
    assert says in found
    assert "obtain" not in found


@pytest.mark.parametrize(
    "name",
    [
        "ply text of polygons",
        "off colours of faces, polygons",
        "obj materials",
        "obj polygons, colours, texture, lines that go on",
        "stl text of two solids, capitals",
        "glb moved and scaled, twice",
    ],
)
def test_draws_are_those_of_the_mesh_that_trimesh_reads(name: str, tmp_path: Path) -> None:
    """So that a training on meshes gives what it gave before this project read them itself."""
    trimesh = pytest.importorskip("trimesh", exc_type=ImportError)
    path = tmp_path / f"cloud.{name.split()[0]}"
    path.write_bytes(content(MATERIALS if name == "obj materials" else READ[name][0]))
    mesh = trimesh.load_scene(path, process=False, skip_materials=True).to_mesh()
    expected = trimesh.sample.sample_surface(mesh, 50, seed=3)[0]
    assert np.array_equal(read_cloud(path, 50, 3), expected)
