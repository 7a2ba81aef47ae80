"""Memory of batches that is used again, and never while somebody still looks at it."""

from __future__ import annotations

from app.data.buffers import HostBuffers


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    buffers = HostBuffers()
    first = buffers.take((4, 2, 2, 3))
    address = first.data_ptr()
    view = first.fill_(7).permute(0, 3, 1, 2)[1:]
    del first
    other = buffers.take((4, 2, 2, 3))
    assert other.data_ptr() != address
    other.fill_(9)
    assert int(view.min()) == int(view.max()) == 7
    del view
    assert buffers.take((4, 2, 2, 3)).data_ptr() == address


def test_another_shape_gets_memory_of_its_own() -> None:
    buffers = HostBuffers()
    buffers.take((4, 2, 2, 3))
    assert buffers.take((2, 2, 2, 3)).shape == (2, 2, 2, 3)
    assert buffers.take((8, 2, 2, 3)).shape == (8, 2, 2, 3)
