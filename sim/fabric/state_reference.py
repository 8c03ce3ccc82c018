"""A core's state as one pointer: what compiled functions take in place of a tuple of arrays."""

from __future__ import annotations

import operator
from hashlib import sha256

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin, lower_cast, lower_getattr_generic
from numba.core.typing import signature
from numba.experimental import structref
from numba.extending import intrinsic, models, register_model
from numba.np import arrayobj

CACHE_LINE = 64
MEMINFO_DATA = 3
"""Words before the pointer to the data in numba's description of a piece of memory."""


class StateArray(types.Array):
    """An array of a state. Its indices count from the front: none is ever negative, and none is tested.

    Numba asks of every index whether it is to be counted from the end. Nobody counts references to it either.
    """

    def __init__(self, kind):
        super().__init__(kind.dtype, kind.ndim, kind.layout, not kind.mutable, f"state {kind.name}", kind.aligned)


@register_model(StateArray)
class StateArrayModel(models.ArrayModel):
    """An array whose users are not counted."""

    def has_nrt_meminfo(self):
        return False

    def traverse(self, builder):
        return []


@lower_builtin(operator.getitem, StateArray, types.Integer)
def _get_row(context, builder, call, arguments):
    kind, index = call.args
    place = context.cast(builder, arguments[1], index, types.uintp)
    found = signature(call.return_type, kind, types.uintp)
    return arrayobj.getitem_arraynd_intp(context, builder, found, (arguments[0], place))


@lower_builtin(operator.setitem, StateArray, types.Integer, types.Any)
def _set_row(context, builder, call, arguments):
    kind, index, value = call.args
    place = context.cast(builder, arguments[1], index, types.uintp)
    found = signature(call.return_type, kind, types.uintp, value)
    return arrayobj.setitem_array(context, builder, found, (arguments[0], place, arguments[2]))


@lower_cast(StateArray, types.Array)
def _as_array(context, builder, kind, target, value):
    return value


class StateType(types.StructRef):
    """Compiled type of a pointer to a state; each core has a class of its own, which cached code finds by name.

    Its name is short, as it is part of the name of every function that takes it: with all fields spelled out, names
    were most of what the compiler read and wrote.
    """

    def __init__(self, fields):
        super().__init__(fields)
        self.name = f"{type(self).__name__}_{sha256(self.name.encode()).hexdigest()[:16]}"

    def preprocess_fields(self, fields):
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


structref.define_attributes(StateType)


class StatePointer(structref.StructRefProxy):
    """A state as one pointer, made with the arrays of its fields in order; whoever makes it keeps them alive.

    A tuple of forty arrays is copied, and each array's reference count touched, at every call between compiled
    functions: measured 2-5 us a message, and a minute of compile time. A pointer costs neither.
    """

    def __new__(cls, *fields):
        return structref.StructRefProxy.__new__(cls, *fields)


class UncountedModel(models.StructRefModel):
    """A pointer whose users are not counted.

    Two atomic operations in every call between compiled functions would be a third of a lone message's time.
    """

    def has_nrt_meminfo(self):
        return False

    def traverse(self, builder):
        return []


@intrinsic
def borrowed(context, value):
    """The same arrays (of a tuple, however nested) without a reference to their owner.

    Compiled code counts references to an array whenever it takes one out of a record, with an atomic
    operation each: a quarter of the time of a small solve. A borrowed array has no counter. Whoever
    borrows keeps the owner alive. The tuple's own arrays become `StateArray`s, those of tuples in it do not.
    """

    def strip(target, builder, kind, value):
        if isinstance(kind, types.Array):
            array = target.make_array(kind)(target, builder, value)
            array.meminfo = ir.Constant(array.meminfo.type, None)
            array.parent = ir.Constant(array.parent.type, None)
            return array._getvalue()
        for i, item in enumerate(kind.types):
            part = strip(target, builder, item, builder.extract_value(value, i))
            value = builder.insert_value(value, part, i)
        return value

    def generate(target, builder, signature, arguments):
        return strip(target, builder, signature.args[0], arguments[0])

    kinds = [StateArray(kind) if isinstance(kind, types.Array) else kind for kind in value.types]
    return types.Tuple(kinds)(value), generate


@intrinsic(prefer_literal=True)
def prefetch(context, array, index, lines):
    """Have a row brought into the cache, at most so many lines: what will be read long after this, out of order."""

    def generate(target, builder, signature, arguments):
        kind = signature.args[0]
        rows = target.make_array(kind)(target, builder, arguments[0])
        row = cgutils.get_item_pointer(target, builder, kind, rows, [arguments[1]], wraparound=False)
        flag = ir.IntType(32)
        address = ir.IntType(8).as_pointer()
        first = builder.bitcast(row, address)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [address, flag, flag, flag]), "llvm.prefetch.p0"
        )
        to_write, keep, is_data = (ir.Constant(flag, value) for value in (1, 3, 1))
        size = target.get_abi_sizeof(target.get_data_type(kind.dtype))
        for offset in range(0, min(size, lines.literal_value * CACHE_LINE), CACHE_LINE):
            line = builder.gep(first, [ir.Constant(ir.IntType(64), offset)])
            builder.call(function, [line, to_write, keep, is_data])
        return target.get_dummy_value()

    return types.none(array, index, lines), generate


def define(pointer: type[StatePointer], kind: type[StateType], fields: tuple[str, ...]) -> None:
    """Tie a pointer to its compiled type and to the names of its fields."""
    register_model(kind)(UncountedModel)
    lower_getattr_generic(kind)(_get_field)
    structref.define_proxy(pointer, kind, list(fields))


def _get_field(context, builder, kind, value, name):
    """Load a field of the state as what never changes while compiled code runs, so that it is loaded once a call and
    not again after every store."""
    reference = cgutils.create_struct_proxy(kind)(context, builder, value=value)
    unchanging = builder.module.add_metadata([])
    payload = kind.get_data_type()
    model = context.data_model_manager[payload]
    place = builder.bitcast(reference.meminfo, ir.IntType(8).as_pointer().as_pointer())
    held = builder.load(builder.gep(place, [ir.Constant(ir.IntType(32), MEMINFO_DATA)]))
    held.set_metadata("invariant.load", unchanging)
    fields = builder.bitcast(held, model.get_value_type().as_pointer())
    field = builder.load(cgutils.gep_inbounds(builder, fields, 0, list(kind.field_dict).index(name)))
    field.set_metadata("invariant.load", unchanging)
    return field
