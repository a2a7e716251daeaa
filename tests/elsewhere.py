"""A pretended GPU: tensors that compute on the CPU, say that they are on cuda, refuse to meet tensors that are not, and count what would wait
for the device."""

import contextlib
import sys
from types import FunctionType
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype as by_device
from torch.utils._pytree import tree_leaves, tree_map

CUDA, Generator, autocast = torch.device('cuda', 0), torch.Generator, torch.autocast
MAY_MIX = {'copy_', 'set_', 'device', 'data', 'grad', '__set__', '__get__'}
# what reads a value of the device, or a size that depends on values
READS = {'item', 'tolist', '__bool__', '__int__', '__float__', '__complex__', '__index__', '__format__', '__repr__', '__contains__', 'is_nonzero',
         'equal', 'allclose', 'nonzero', 'argwhere', 'masked_select', 'unique', 'unique_consecutive', '_unique', '_unique2', 'bincount',
         '_unique_impl', '_unique_consecutive_impl', '_local_scalar_dense'}
MAKES = {'tensor', 'as_tensor', 'asarray', 'new_tensor', 'new'} # what sends numbers of Python to the device


class Elsewhere(torch.Tensor):
    "A tensor that says it is on cuda:0."
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def numpy(self, *args, **kwargs): raise TypeError("can't convert cuda:0 device type tensor to numpy")
    def __array__(self, *args, **kwargs): raise TypeError("can't convert cuda:0 device type tensor to numpy")
    def pin_memory(self, *args, **kwargs): raise RuntimeError('only dense CPU tensors can be pinned')
    def __deepcopy__(self, memo):
        "As torch does for a parameter."
        if id(self) not in memo: memo[id(self)] = there(here(self.detach()).clone()).requires_grad_(self.requires_grad)
        return memo[id(self)]


class FarGenerator(Generator):
    "torch.Generator(device)"
    def __new__(cls, device='cpu'):
        self = super().__new__(cls)
        self.where = CUDA if torch.device(device).type == 'cuda' else torch.device(device)
        return self
    device = property(lambda self: self.where)


def is_there(x): return isinstance(x, Elsewhere)
def here(x): return x.as_subclass(torch.Tensor) if is_there(x) else x
def there(x): return x.as_subclass(Elsewhere) if isinstance(x, torch.Tensor) else x
def is_far(device): return device is not None and torch.device(device).type == 'cuda'


def moved(x, args, kwargs):
    "x.to(...)"
    target = [a for a in (*args, kwargs.get('device'), kwargs.get('other')) if isinstance(a, (str, torch.device, torch.Tensor))]
    args = [torch.device('cpu') if isinstance(a, (str, torch.device)) else here(a) for a in args]
    kwargs = {k: here(v) for k, v in kwargs.items() if k != 'device'}
    y = here(x).to(*args, **kwargs)
    if not target: return there(y) if is_there(x) else y
    far = is_there(target[0]) if isinstance(target[0], torch.Tensor) else is_far(target[0])
    if far == is_there(x): return there(y) if far else y
    if y is here(x) or y.data_ptr() == here(x).data_ptr(): y = y.clone()
    return there(y) if far else y


def reads_index(x, index):
    "Does x[index] need a value of the device, or a copy to it?"
    for i in index if isinstance(index, tuple) else (index,):
        if isinstance(i, list) and is_there(x): return True
        if isinstance(i, torch.Tensor) and (is_there(i) and (i.dtype in (torch.bool, torch.uint8) or i.ndim == 0) or is_there(x) and not is_there(i) and i.ndim):  # noqa: E501
            return True
    return False


def waits(name, args, kwargs, tensors):
    "Would the host wait for the device here? Copies between them are counted by `Pretend.copied`."
    far = any(map(is_there, tensors))
    if name in READS: return far
    if name in MAKES: return far and name.startswith('new') or is_far(kwargs.get('device')) and not any(map(is_there, tensors))
    if name in ('__getitem__', '__setitem__'): return reads_index(args[0], args[1])
    if name in ('index_put', 'index_put_'): return reads_index(args[0], tuple(args[1] if len(args) > 1 else kwargs['indices']))
    if name == 'where': return len(args) == 1 and far or far and any(not is_there(x) for x in tensors)
    if name == 'repeat_interleave': return far and isinstance(args[-1], torch.Tensor) and kwargs.get('output_size') is None
    if name == 'copy_': return is_there(args[0]) != is_there(args[1]) and not (kwargs.get('non_blocking') and is_pinned(args[1]))
    return False


def is_pinned(x): return getattr(x, 'in_pinned_memory', False)


def caller():
    "The innermost line of the package that is being run, `checked` left out."
    frame = sys._getframe(1)
    while frame and ('discdiff_nb' not in frame.f_code.co_filename or frame.f_code.co_name == 'call'): frame = frame.f_back
    return f'{frame.f_code.co_filename.rsplit("/", 1)[-1]}:{frame.f_lineno} {frame.f_code.co_name}' if frame else 'outside the package'


class Pretend(TorchFunctionMode):
    "`waits` lists what would have waited for the device: (function, line of the package)."
    def __init__(self):
        super().__init__()
        self.waits = []

    def copied(self, x, args, kwargs):
        "x.to(...), counted where it joins the queue of the device and the host waits for it."
        y = moved(x, args, kwargs)
        free = kwargs.get('non_blocking') and is_pinned(x)
        if isinstance(y, torch.Tensor) and is_there(x) != is_there(y) and not free: self.waits.append(('to', caller()))
        return y

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', str(func))
        if name == 'to' and isinstance(args[0], torch.Tensor): return self.copied(args[0], args[1:], kwargs)
        if name == 'cpu': return self.copied(args[0], ('cpu',), {})
        if name == 'cuda': return self.copied(args[0], ('cuda',), kwargs)
        if name == 'pin_memory':
            pinned = args[0].clone()
            pinned.in_pinned_memory = True
            return pinned
        if name in ('numpy', '__array__') and is_there(args[0]): raise TypeError("can't convert cuda:0 device type tensor to numpy")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if waits(name, args, kwargs, tensors): self.waits.append((name, caller()))
        far = is_far(kwargs['device']) if kwargs.get('device') is not None else any(map(is_there, tensors))
        generator = kwargs.get('generator') or next((a for a in args if isinstance(a, FarGenerator)), None)
        if isinstance(generator, FarGenerator):
            if (generator.device.type == 'cuda') != far:
                raise RuntimeError(f"Expected a '{'cuda' if far else 'cpu'}' device type for generator but found '{generator.device.type}' in {name}")
        self.check(name, args, tensors, any(map(is_there, tensors)))
        if 'device' in kwargs: kwargs = dict(kwargs, device=None)
        if isinstance(func, FunctionType) and name != 'grad': args, kwargs = tree_map(here, args), tree_map(here, kwargs)
        with torch._C.DisableTorchFunctionSubclass(): out = func(*args, **kwargs)
        if any(out is x for x in tensors): return out
        if name.endswith('_') and not name.endswith('__') and tensors and isinstance(out, torch.Tensor): return tensors[0]
        return tree_map(there, out) if far else out

    def check(self, name, args, tensors, any_far):
        if not any_far or name in MAY_MIX or name.startswith('__') and name not in ('__getitem__', '__setitem__'): return
        if name in ('__getitem__', '__setitem__', 'index_put_'):
            if is_there(args[0]): tensors = [x for x in tensors if is_there(x) or name != '__getitem__' and x is args[-1]]
        near = [x for x in tensors if not is_there(x) and x.ndim]
        if near: raise RuntimeError(f'Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! in {name}: '
                                    f'cpu {[tuple(x.shape) for x in near]}')


def grouped(lists, with_indices=False):
    "The groups of tensors that optimizers and clip_grad_norm_ make, under the device that they say they are on."
    groups = by_device(lists, with_indices)
    return {(CUDA if any(map(is_there, tree_leaves(group[0][0]))) else device, dtype): group for (device, dtype), group in groups.items()}


def to_there(module, device):
    "module.to(device)"
    if not is_far(device): return module
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and not is_there(p): part._parameters[name] = torch.nn.Parameter(there(p.detach().clone()), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None: part._buffers[name] = there(b)
    return module


@contextlib.contextmanager
def pretended():
    "Within it torch.cuda.is_available() is true and device='cuda' works, at the CPU's speed. Yields what counts the waiting."
    near_autocast = lambda device, *args, **kwargs: autocast('cpu', *args, **kwargs)
    none = lambda *args: None
    fixed = {'torch.cuda.is_available': lambda: True, 'torch.cuda.get_device_capability': lambda *args: (9, 0),
             'torch.cuda.get_device_name': lambda *args: 'pretended GPU', 'torch.cuda.synchronize': none,
             'torch.optim.Optimizer._accelerator_graph_capture_health_check': none, 'torch.Generator': FarGenerator,
             'torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype': grouped, 'torch.optim.optimizer._group_tensors_by_device_and_dtype': grouped,
             'torch.autocast': near_autocast, 'torch.nn.Module.to': to_there}
    with contextlib.ExitStack() as stack:
        for name, value in fixed.items(): stack.enter_context(mock.patch(name, value))
        yield stack.enter_context(Pretend())
