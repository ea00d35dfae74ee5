"""What every quantizer, initializer, optimizer, method and role must keep, as checks that a plugin's tests can run.

    import pytest
    from lorakit.testing import quantizer_checks
    from lorakit_mine import Mine

    @pytest.mark.parametrize("check", quantizer_checks(Mine), ids=str)
    def test_mine(check):
        check()

Every `…_checks(plugin_class, **options)` returns a list of `Check`s, each with an `id`, to be called without arguments;
every `check_…` runs them all and raises one CheckFailure. `lorakit plugins test DISTRIBUTION` does it for all that a
distribution adds. CUDA is checked where there is one.
"""

from lorakit.testing.checks import Check, CheckFailure
from lorakit.testing.quantizers import check_quantizer, quantizer_checks

__all__ = ["Check", "CheckFailure", "check_quantizer", "quantizer_checks"]
