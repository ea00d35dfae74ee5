"""What every plugin of a kind must keep, as checks for its tests.

    import pytest
    from lorakit.testing import quantizer_checks
    from lorakit_mine import Mine

    @pytest.mark.parametrize("check", quantizer_checks(Mine), ids=str)
    def test_mine(check):
        check()

Every `…_checks(plugin_class, **options)` returns a list of `Check`s, each with an `id`, to be called without arguments;
every `check_…` runs them all and raises one CheckError. `lorakit plugins test DISTRIBUTION` does it for all that a
distribution adds. CUDA is checked where there is one.
"""

from lorakit.testing.checks import Check, CheckError
from lorakit.testing.data import check_data_format, check_data_shape, data_format_checks, data_shape_checks
from lorakit.testing.initializers import check_initializer, initializer_checks
from lorakit.testing.kernels import check_kernel, kernel_checks
from lorakit.testing.methods import check_method, method_checks
from lorakit.testing.optimizers import check_optimizer, optimizer_checks
from lorakit.testing.quantizers import check_quantizer, quantizer_checks
from lorakit.testing.roles import check_role, role_checks

__all__ = [
    "Check",
    "CheckError",
    "check_data_format",
    "check_data_shape",
    "check_initializer",
    "check_kernel",
    "check_method",
    "check_optimizer",
    "check_quantizer",
    "check_role",
    "data_format_checks",
    "data_shape_checks",
    "initializer_checks",
    "kernel_checks",
    "method_checks",
    "optimizer_checks",
    "quantizer_checks",
    "role_checks",
]
