"""A core's state as one pointer: what compiled functions take in place of a tuple of arrays."""

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.experimental import structref
from numba.extending import intrinsic, models, register_model

CACHE_LINE = 64


class StateType(types.StructRef):
    """Compiled type of a pointer to a state; each core has a class of its own, which cached code finds by name."""

    def preprocess_fields(self, fields):
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


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
    borrows keeps the owner alive.
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

    return value(value), generate


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
    register_model(structref.register(kind))(UncountedModel)
    structref.define_proxy(pointer, kind, list(fields))
