"""The order in which a function reads the leaves of its parameters: the order of the layers, for a model's loss."""
import jax
import jax.extend

from lm import trees


def reading_order(function, params, *arguments):
    """Returns the names of the leaves of `params` in the order in which function(params, *arguments) first reads them.

    Leaves that are read inside a scan, a jit or the like come in its own order; those that are never read come last.
    """
    jaxpr = jax.make_jaxpr(function)(params, *arguments).jaxpr
    known = dict(zip(jaxpr.invars, trees.flatten(params)))
    return list(dict.fromkeys([*_reads(jaxpr, known), *trees.flatten(params)]))


def _reads(jaxpr, known):
    """Yields the names of the variables in `known`, {variable: name}, in the order of the equations that read them.

    An equation with one operand, such as a transpose or a cast, reads nothing by itself: its result takes the name over
    and counts as read where it is used. So does a call whose inner equations read nothing.
    """
    for equation in jaxpr.eqns:
        operands = [known.get(v) if isinstance(v, jax.extend.core.Var) else None for v in equation.invars]
        reads = [name for inner in _calls(equation) if any(operands)
                 for name in _reads(inner, {v: name for v, name in zip(inner.invars, operands) if name})]
        if len(operands) == 1 and not reads:
            known = {**known, equation.outvars[0]: operands[0]}
        else:
            yield from reads
            yield from filter(None, operands)


def _calls(equation):
    """Yields the jaxprs that an equation runs on its own operands: of a scan, a jit, a remat or the like."""
    for value in equation.params.values():
        jaxpr = getattr(value, 'jaxpr', value)  # a ClosedJaxpr holds one
        if len(getattr(jaxpr, 'invars', ())) == len(equation.invars):
            yield jaxpr
