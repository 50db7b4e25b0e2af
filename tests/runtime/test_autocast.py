import pytest
import torch
from torch.nn.functional import conv2d, scaled_dot_product_attention

from ddimctl.runtime.autocast import autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_products_are_in_the_precision_and_their_gradients_in_float32(precision, dtype):
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    with autocast(CPU, precision):
        y = conv2d(x, weight)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_attention_on_a_cpu_is_in_float32():
    query, key, value = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    with autocast(CPU, "bf16"):
        found = scaled_dot_product_attention(query.bfloat16(), key, value=value, attn_mask=mask)
    expected = scaled_dot_product_attention(query.bfloat16().float(), key, value, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    found.sum().backward()
    assert all(each.grad is not None for each in (query, key, value))


def test_outside_nothing_is_changed():
    with pytest.raises(KeyError), autocast(CPU, "bf16"):
        raise KeyError
    x = torch.randn(1, 1, 4, 4).bfloat16()
    assert scaled_dot_product_attention(x, x, x).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
