"""RPC methods of the claims on cores."""
from vhostrt.core_locks import Claimed
from vhostrt.rpc.method import ANY_STATE, INTERNAL_ERROR, Dispatcher, RpcError, method


@method("framework_enable_cpumask_locks", states=ANY_STATE)
async def framework_enable_cpumask_locks(rpc: Dispatcher) -> bool:
    """Claim the cores, all of them or none."""
    try:
        refusal = rpc.target.core_locks.claim()
    except Claimed as error:
        raise RpcError(INTERNAL_ERROR, f"Failed to claim CPU core: {error.cpu}, {error.holder} has "
                       "claimed it") from None
    if refusal:
        raise RpcError(INTERNAL_ERROR, refusal)
    return True


@method("framework_disable_cpumask_locks", states=ANY_STATE)
async def framework_disable_cpumask_locks(rpc: Dispatcher) -> bool:
    """Give the cores back: other programs may claim them."""
    rpc.target.core_locks.release()
    return True
