"""Full ports: finite buffers, marks, trimming and pauses.

Occupancy counts data packets from their entry to the end of their serialisation. Control packets (acknowledgements,
credit, packets that lost their payload) go ahead of data, are never refused or marked, and no pause stops them.

The end of a serialisation is an event where something else depends on it at that moment: at sources, and where ports
share a buffer or signal their occupancy. Any other port catches up on the ends that it has passed whenever something
happens at it or looks at its queue: its own packets on their way over the link see to that.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inner
from sim.fabric import alarms, packet_log, wheel
from sim.fabric import packet_ports as lean
from sim.fabric.fluid_state import NONE
from sim.fabric.full_state import DATA, GOLDEN
from sim.fabric.policies import mix

PAUSE_FRAME_BITS = 64 * 8


@inner(inline="always")
def _is_refused(state, port, size):
    """No room in the port, or in the switch: shared buffers admit up to alpha (B - used) per port (Choudhury and
    Hahne 1998)."""
    c = state.c[0]
    if c.is_lossless:
        return False
    free = c.buffer - state.switches[port.node].used
    return port.queue + size > c.port_limit or size > free or port.queue + size > c.buffer_alpha * free


@inner(forceinline=True)
def _draw(port):
    """Evenly from [0, 1)."""
    port.random += GOLDEN
    return (mix(port.random) >> np.uint64(11)) * 2.0**-53


@inner(inline="always")
def _is_marked(state, port):
    """A queue of q bytes marks none up to `mark_from`, all from `mark_all` on, and between them with probability
    mark_most (q - mark_from) / (mark_all - mark_from)."""
    c = state.c[0]
    if port.queue <= c.mark_from:
        return False
    if port.queue >= c.mark_all:
        return True
    return _draw(port) < c.mark_most * (port.queue - c.mark_from) / (c.mark_all - c.mark_from)


@inner
def _signal(state, link, is_pause, now):
    """Tell the port at the other end of `link` to stop or go on: a frame of 64 bytes, which no queue delays."""
    port = state.ports[link]
    back = lean.pace_of(state, state.reverse[link] if state.reverse[link] != NONE else link)
    port.is_asserted = is_pause
    alarms.push(state, now + back.latency + PAUSE_FRAME_BITS * 10**12 // back.rate, alarms.pause_code(link, is_pause))


@inner(inline="always")
def _admit(state, p, packet, now):
    """A data packet enters a switch's port. False: it is refused."""
    port = state.ports[p]
    port.entered += 1
    size = packet.size
    if _is_refused(state, port, size):
        return False
    if _is_marked(state, port):
        packet.is_marked = True
        port.marks += 1
    port.queue += size
    port.longest_queue = max(port.longest_queue, port.queue)
    state.switches[port.node].used += size
    if state.c[0].is_lossless:
        link = state.ports[packet.came_over]
        if link.far_node == port.node:
            link.ingress += size
        if link.ingress > state.c[0].pause_above and not link.is_asserted:
            _signal(state, np.int64(packet.came_over), True, now)
    return True


@inner(inline="always")
def _release(state, p, now):
    """The data packet that port p has sent leaves the buffer."""
    port = state.ports[p]
    size, came_over = np.int64(port.serving_size), np.int64(port.serving_from)
    port.serving_size = 0
    if port.node == NONE or size == 0:
        return
    port.queue -= size
    state.switches[port.node].used -= size
    if state.c[0].is_lossless:
        link = state.ports[came_over]
        if link.far_node == port.node:
            link.ingress -= size
        if link.is_asserted and link.ingress <= state.c[0].resume_below:
            _signal(state, came_over, False, now)


@inner
def pause(state, p, is_pause, now):
    """Port p is told to stop, or to go on with data."""
    port = state.ports[p]
    if is_pause == port.is_paused:
        return
    port.is_paused = is_pause
    if is_pause:
        port.pauses += 1
        port.paused_since = now
        return
    port.paused += now - port.paused_since
    if not port.is_busy:
        lean.wake(state, p)


@inner(forceinline=True)
def _log(state, p, packet, now, event):
    if len(state.log) > 0:
        packet_log.note(state, p, packet, packet.kind, packet.is_marked, now, event)


@inner(inline="always")
def _count(state, p, packet, now):
    port = state.ports[p]
    _log(state, p, packet, now, packet_log.SENT)
    if packet.kind != DATA or packet.is_trimmed:
        port.ack_packets += 1
        return
    port.data_packets += 1
    if not port.is_source:
        lean.count_wait(state, p, now - packet.time, now)


@inner
def send(state, p, k, now):
    """Port p starts on packet k."""
    port = state.ports[p]
    packet = state.packets[k]
    port.is_busy = True
    port.serving_size = packet.size if packet.kind == DATA and not packet.is_trimmed else 0
    port.serving_from = packet.came_over
    lean.serialise(state, p, packet.size, now)
    _count(state, p, packet, now)
    if port.has_ends:
        wheel.schedule(state, 2 * p + 1, port.end)
        if port.is_source and lean.goes_early(state, p, packet):
            port.serving = k
            return
    time = port.end + lean.pace_of(state, p).latency
    packet.next = NONE
    if port.wire_first == NONE:
        port.wire_first = k
        wheel.schedule(state, 2 * p, time)
    else:
        state.packets[port.wire_last].next = k
        state.packets[port.wire_last].time = time
    port.wire_last = k


@inner(inline="always")
def enter(state, p, k, came_over, now):
    """Packet k reaches port p over a link. False: there was no room, and it is gone."""
    catch_up(state, p, now)
    port = state.ports[p]
    packet = state.packets[k]
    packet.time = now
    packet.came_over = came_over
    is_control = packet.kind != DATA or packet.is_trimmed
    if not is_control and port.node != NONE and not _admit(state, p, packet, now):
        if not state.c[0].is_trimming:
            port.drops += 1
            port.dropped_bytes += packet.size
            _log(state, p, packet, now, packet_log.DROPPED)
            return False
        port.trims += 1
        port.trimmed_bytes += packet.size - state.c[0].header_bytes
        _log(state, p, packet, now, packet_log.TRIMMED)
        packet.is_trimmed = True
        packet.size = state.c[0].header_bytes
        is_control = True
    if port.is_busy or port.is_source or (port.is_paused and not is_control):
        lean.queue(state, p, k, is_control)
        if port.is_source and not port.is_busy:
            lean.wake(state, p)
    else:
        send(state, p, k, now)
    return True


@inner(inline="always")
def loses(state, p, packet, now):
    """Whether a faulty link loses the packet that has reached its end. A dead one loses all: its port goes on sending,
    into nothing, so that what was on its way when it died or was repaired is lost as well."""
    port = state.ports[p]
    if not (port.is_down or now <= port.lost_until or (port.loss > 0.0 and _draw(port) < port.loss)):
        return False
    _log(state, p, packet, now, packet_log.LOST)
    if packet.kind != DATA or packet.is_trimmed:
        port.control_losses += 1
    else:
        port.losses += 1
        port.lost_bytes += packet.size - state.c[0].header_bytes
    return True


@inner(inline="always")
def finish(state, p, now):
    """Port p has sent its packet's last bit."""
    state.ports[p].is_busy = False
    _release(state, p, now)


@inner(inline="always")
def next_queued(state, p):
    """The packet that a free port sends next, taken out of its queue; NONE: none may be sent."""
    port = state.ports[p]
    if port.ack_first != NONE:
        k = np.int64(port.ack_first)
        port.ack_first = state.packets[k].next
        return k
    if port.data_first != NONE and not port.is_paused:
        k = np.int64(port.data_first)
        port.data_first = state.packets[k].next
        return k
    return NONE


@inner(forceinline=True)
def catch_up(state, p, now):
    """Bring a port without end events up to what comes before `now`. What ends now may yet be overtaken by an arrival
    of the same instant, and stays."""
    port = state.ports[p]
    while port.is_busy and port.end < now and not port.has_ends:
        finish(state, p, port.end)
        k = next_queued(state, p)
        if k != NONE:
            send(state, p, k, port.end)


@inner
def queue_at(state, p, now):
    """Data bytes in port p at this moment."""
    catch_up(state, np.int64(p), now)
    return state.ports[p].queue
