"""Nodes of a glTF scene: where each of its meshes is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pointadapterx.datasets.formats.tables import NotReadError


def entry(scene: Mapping[str, Any], key: str, index: Any) -> Any:
    """One of a file's ``meshes``, ``accessors`` and so on, which name each other by number.

    Raises:
        ValueError: if there is no such one.
    """
    entries = scene.get(key, [])
    if not isinstance(index, int) or not 0 <= index < len(entries):
        raise ValueError(f"it names number {index!r} of its {len(entries)} {key}")
    return entries[index]


def instances(trimesh: Any, scene: Mapping[str, Any]) -> Iterator[tuple[int, np.ndarray]]:
    """Meshes of the scene that is shown, each with its place ``(4, 4)``, as often as nodes show it.

    The order of nodes and products is trimesh's own, so that draws from a surface are those of its scene.

    Args:
        trimesh: the package.
        scene: JSON of the file.

    Raises:
        NotReadError: if a node has more copies of its mesh in an extension.
        ValueError: if a node is another's child twice.
    """
    nodes = scene.get("nodes", [])
    scenes = scene.get("scenes")
    if scenes:
        roots = entry(scene, "scenes", scene.get("scene", 0)).get("nodes", [])
    else:
        children = {child for node in nodes for child in node.get("children", ())}
        roots = [number for number in range(len(nodes)) if number not in children]
    waiting: list[tuple[int, list[np.ndarray]]] = [(root, []) for root in roots]
    seen: set[int] = set()
    while waiting:
        number, above = waiting.pop()
        node = entry(scene, "nodes", number)
        if number in seen:
            raise ValueError(f"its node {number} is the child of two nodes, or of itself")
        seen.add(number)
        if "EXT_mesh_gpu_instancing" in node.get("extensions", {}):
            raise NotReadError(
                "it shows copies of a mesh by EXT_mesh_gpu_instancing, which is not read; save it without"
            )
        own = _matrix(trimesh, node)
        path = above if np.abs(own - np.eye(4)).max() <= 1e-8 else [*above, own]
        waiting += [(child, path) for child in node.get("children", ())]
        if "mesh" in node:
            yield node["mesh"], _product(trimesh, path)


def _product(trimesh: Any, matrices: list[np.ndarray]) -> np.ndarray:
    if not matrices:
        return np.eye(4)
    return matrices[0] if len(matrices) == 1 else trimesh.util.multi_dot(matrices)


def _matrix(trimesh: Any, node: Mapping[str, Any]) -> np.ndarray:
    """Of a node in its parent: a matrix, or translation, rotation and scale."""
    matrix = np.eye(4)
    if "matrix" in node:
        matrix = np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    if "translation" in node:
        matrix = np.dot(matrix, trimesh.transformations.translation_matrix(node["translation"]))
    if "rotation" in node:
        turn = np.reshape(node["rotation"], 4)[[3, 0, 1, 2]]
        matrix = np.dot(matrix, trimesh.transformations.quaternion_matrix(turn))
    if "scale" in node:
        matrix = np.dot(matrix, np.diag([*node["scale"], 1.0]))
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError("a node's place is no matrix of finite numbers")
    return matrix
