"""The reference engine: a `for` over the clients, in one process and one thread."""

import time
from collections.abc import Iterable, Sequence

from fedmorl.federated.records import Client, ClientUpdate, FitConfig, RoundResult, State


class InProcessLoop:
    """Fits one client after the other; defines the answer that the other engines are compared with."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self.clients = {client.client_id: client for client in clients}

    def run_round(self, round: int, state: State, config: FitConfig, ids: Sequence[int]) -> RoundResult:
        """Ask `ids` in turn; an exception of one is its own failure, `error`."""
        start = time.perf_counter()
        updates: list[ClientUpdate] = []
        details: dict[int, str] = {}
        for client_id in ids:
            try:
                updates.append(answer(self.clients[client_id], round, state, config))
            except Exception as error:  # whatever a client does, the round goes on
                details[client_id] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return RoundResult(
            updates=tuple(updates),
            failures=dict.fromkeys(details, "error"),
            details=details,
            seconds={"fit": time.perf_counter() - start},
        )


def answer(client: Client, round: int, state: State, config: FitConfig) -> ClientUpdate:
    """The client's own update, from a copy of the state; TypeError or ValueError if it is none."""
    received = {name: value.copy() for name, value in state.items()}  # a client may scribble on what it gets
    update = client.fit(round, received, config)
    if not isinstance(update, ClientUpdate):
        raise TypeError(f"fit must return a ClientUpdate; it returned {type(update).__name__}")
    if update.client_id != client.client_id:
        raise ValueError(f"it answered under the id {update.client_id}")
    return update
