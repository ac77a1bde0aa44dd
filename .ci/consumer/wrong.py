"""The control: pyright must refuse each of the three lines that are marked, and no other."""

import lopjax as lop

model = lop.mlp((4,), widths="three", num_classes=2)  # refused
number: int = lop.widen(model, 2)  # refused
name = lop.no_such_name  # refused
