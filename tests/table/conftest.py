"""A small teacher of the handwritten digits, with the views of a crop by one pixel."""

from __future__ import annotations

import pytest
from table_case import make_teacher, make_views

from distillation.data import TensorLoader, digits
from distillation.table import ImageInputs, TeacherTable


@pytest.fixture(scope="session")
def images():
    return digits()[0].subset(320, seed=0)


@pytest.fixture
def teacher():
    return make_teacher()


@pytest.fixture
def inputs(images):
    return ImageInputs(images, make_views())


@pytest.fixture
def loader(images):
    return TensorLoader(images, 64, views=make_views(), seed=3)


@pytest.fixture
def table(teacher, tmp_path, inputs):
    with TeacherTable(teacher, tmp_path / "table", inputs) as table:
        yield table
