"""
A TCP proxy that holds back what the client sends, as a network does: ``python -m benchmarks.proxy TARGET SECONDS``.

It is a delay line: what was sent together arrives together, so a pipeline stays one. It prints its port.
"""

import asyncio
import contextlib
import sys


async def _line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, data = await queue.get()
            while (left := due - loop.time()) > 0:  # the event loop's clock is coarser than a millisecond
                await asyncio.sleep(left if left > 0.002 else 0)
            writer.write(data)

    task = asyncio.ensure_future(deliver()) if seconds else None
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            if task is None:
                writer.write(data)
            else:
                queue.put_nowait((loop.time() + seconds, data))
    if task is not None:
        task.cancel()
    writer.close()


async def _serve(target: str, seconds: float) -> None:
    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if target.startswith("/"):
            upstream, downstream = await asyncio.open_unix_connection(target)
        else:
            host, _, port = target.rpartition(":")
            upstream, downstream = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_line(reader, downstream, seconds), _line(upstream, writer, 0))

    server = await asyncio.start_server(link, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], float(sys.argv[2])))
