"""Which cores a rank of a host has: pure arithmetic over what the machine is. A core here is a hardware thread, as the
kernel numbers them; siblings are those of one physical core."""


def physical_cores(allowed, siblings, nodes):
    """{node: [(core, ...), ...]}: the allowed cores by NUMA node and by physical core, in ascending order. Those in no node
    come last, as a node of their own."""
    allowed = sorted(set(allowed))
    home = {core: node for node, cores in nodes.items() for core in cores}
    beyond = max(nodes, default=0) + 1
    found = {}
    for core in allowed:
        node = home.get(core, beyond)
        found.setdefault(node, {}).setdefault(min(siblings.get(core, (core,)), default=core), []).append(core)
    return {node: [tuple(cores) for cores in found[node].values()] for node in sorted(found)}


def cores_of_local_rank(allowed, siblings, nodes, local_rank, local_world, prefer_node=None):
    """The cores of one of the ranks that share a host, ascending: the same answer for the same machine in every rank, so
    they share without overlap.

    allowed: the cores to share. siblings: {core: cores of the same physical core}; a core that isn't there is alone. nodes:
    {NUMA node: its cores}. prefer_node: a function from a local rank, of any of them, to the node of its GPU, or to None.

    Ranks stay on the node that they prefer as long as it has a core for each; others are spread over the nodes. On a node,
    ranks have contiguous physical cores, siblings together, unless it has fewer of these than ranks. A rank has several whole
    nodes where there are fewer ranks than nodes and nobody prefers one. Fewer cores than ranks: ranks share cores.
    Errors: ValueError if nothing is allowed or the rank is none of the ranks.
    """
    by_node = physical_cores(allowed, siblings, nodes)
    if not by_node:
        raise ValueError("no core is allowed")
    if not 0 <= local_rank < local_world:
        raise ValueError(f"local rank {local_rank} of {local_world}")
    wanted = [None if prefer_node is None else prefer_node(rank) for rank in range(local_world)]
    wanted = [node if node in by_node else None for node in wanted]
    if sum(_threads(cores) for cores in by_node.values()) < local_world:
        return _shared(by_node, wanted, local_rank)
    if local_world < len(by_node) and not any(node is not None for node in wanted):
        return _whole_nodes(list(by_node.values()), local_rank, local_world)
    homes = _homes(by_node, wanted)
    mates = [rank for rank, node in enumerate(homes) if node == homes[local_rank]]
    return _piece(by_node[homes[local_rank]], mates.index(local_rank), len(mates))


def _threads(cores):
    return sum(map(len, cores))


def _flat(cores):
    return [core for siblings in cores for core in siblings]


def _shared(by_node, wanted, local_rank):
    node = wanted[local_rank]
    pool = _flat(by_node[node]) if node is not None else [core for cores in by_node.values() for core in _flat(cores)]
    mates = [rank for rank, other in enumerate(wanted) if other == node]
    at, count = mates.index(local_rank), len(mates)
    begin = at * len(pool) // count
    return tuple(sorted(pool[begin : max(begin + 1, (at + 1) * len(pool) // count)]))


def _whole_nodes(nodes, local_rank, local_world):
    """Consecutive nodes for each rank, at least one, as equal in physical cores as nodes allow."""
    begin, left = 0, sum(map(len, nodes))
    for rank in range(local_rank + 1):
        ranks = local_world - rank
        end, taken = begin + 1, len(nodes[begin])
        while end <= len(nodes) - ranks and (ranks == 1 or taken + len(nodes[end]) / 2 <= left / ranks):
            taken += len(nodes[end])
            end += 1
        if rank < local_rank:
            begin, left = end, left - taken
    return tuple(sorted(core for cores in nodes[begin:end] for core in _flat(cores)))


def _homes(by_node, wanted):
    """The node of each rank: no node gets more ranks than it has cores."""
    homes = [None] * len(wanted)
    counts = dict.fromkeys(by_node, 0)
    for rank, node in enumerate(wanted):
        if node is not None and counts[node] < _threads(by_node[node]):
            homes[rank] = node
            counts[node] += 1
    free = homes.count(None)
    whole = free <= sum(max(0, len(cores) - counts[node]) for node, cores in by_node.items())
    size = {node: len(cores) if whole else _threads(cores) for node, cores in by_node.items()}
    added = dict.fromkeys(by_node, 0)
    for _ in range(free):
        roomiest = max(size, key=lambda node: size[node] / (counts[node] + 1))
        counts[roomiest] += 1
        added[roomiest] += 1
    others = iter([node for node in by_node for _ in range(added[node])])
    return [next(others) if node is None else node for node in homes]


def _piece(cores, at, count):
    pieces = cores if count <= len(cores) else [(core,) for core in _flat(cores)]
    return tuple(sorted(_flat(pieces[at * len(pieces) // count : (at + 1) * len(pieces) // count])))
