// Streams, and the work that waits in their queues.
//
// Operators run when they are issued; copies and waits are queued, and carried out as late as the order allows: when
// a later operator of the stream runs, when another stream that waits for them has to run, when the host synchronises.
// A program that forgets to wait therefore computes with what was there before, every time, and not only on a busy day.
#pragma once

#include "clocks.hpp"

namespace simdev {

// Memory under a block. Queued copies share it with the block, so that a block can be freed under them, and what was
// issued is carried out as late as ever.
struct Bytes {
  void* address;
  c10::Storage owner{};  // of memory that an operator of the CPU allocated; else it is ours to free
  bool freed = false;    // the block is gone, only copies are left

  Bytes(void* a, c10::Storage o) : address(a), owner(std::move(o)) {}
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() {
    if (!owner) std::free(address);
  }
};

struct Task {
  std::function<void()> run;
  std::shared_ptr<Bytes> source{}, target{};  // of a copy; none for a wait, and for memory that no block describes
};

struct Stream {
  size_t number;  // in the vector clocks, by first use
  int device;
  int64_t id;
  VectorClock clock;
  uint64_t issued = 0;  // positions in the queue, counted from the start
  uint64_t done = 0;
  std::deque<Task> queue;

  std::string name() const { return c10::str("stream ", id, " of ", device_name(device)); }
};

struct StreamTable {
  std::array<std::array<std::unique_ptr<Stream>, kPooledStreams + 1>, kMaxDevices> by_id;
  std::vector<Stream*> by_number;
  std::array<int64_t, kMaxDevices> created{};

  int64_t host_syncs = 0;
};
inline StreamTable& table() { return immortal<StreamTable>(); }

// What the host knows to have happened, because it waited for it.
//
// What orders the threads of the host (locks, queues, joins) is not seen from here. With one clock for all they count
// as ordered the way they really ran: no right program is reported, but whether a wrong one is may depend on what
// another thread happened to wait for in time. With thread clocks each knows what it waited for itself, and what all
// knew when it came here first or when clocks parted, whichever was later: the verdict no longer depends on the run.
struct Host {
  VectorClock together;
  VectorClock at_parting;

  VectorClock& own() const {
    static thread_local VectorClock clock = together;
    return clock;
  }
  void learn(const VectorClock& clock) {
    together.join(clock);
    own().join(clock);
  }
  bool knows(size_t stream, uint64_t tick) const {
    if (!settings().thread_clocks) return together.at(stream) >= tick;
    return at_parting.at(stream) >= tick || own().at(stream) >= tick;
  }
  // Whatever the host issues to a stream comes after all that the host knows of.
  void tell(VectorClock& clock) const {
    if (!settings().thread_clocks) return clock.join(together);
    clock.join(at_parting);
    clock.join(own());
  }
};
inline Host& host() { return immortal<Host>(); }

// Copies that were not carried out yet, into memory that is still in use: nobody misses the others.
inline int64_t queued_copies() {
  int64_t count = 0;
  for (const Stream* s : table().by_number)
    for (const Task& t : s->queue) count += t.target && !t.target->freed;
  return count;
}

inline thread_local int current_device = 0;
inline thread_local std::array<int64_t, kMaxDevices> current_stream_ids{};  // 0: the default stream

inline Stream& stream(int device, int64_t id) {
  TORCH_CHECK(device >= 0 && device < settings().device_count && id >= 0 && id <= kPooledStreams,
              "simdev: there is no stream ", id, " on device ", device);
  auto& slot = table().by_id[device][id];
  if (!slot) {
    slot = std::make_unique<Stream>(Stream{table().by_number.size(), device, id, {}, 0, 0, {}});
    table().by_number.push_back(slot.get());
  }
  return *slot;
}
inline Stream& stream(const c10::Stream& s) { return stream(s.device_index(), s.id()); }
inline Stream& current_stream(int device) { return stream(device, current_stream_ids[device]); }

// Carry out the queue up to a position. A wait in it carries out another queue first; since an event names a position
// that was issued before the wait, this cannot come back to the task that is running.
inline void drain(Stream& s, uint64_t position) {
  if (s.done >= position) return;
  // The task was recorded below autograd and Python's modes, and must run there, whoever needs it now.
  c10::impl::ExcludeDispatchKeyGuard below(
      c10::autograd_dispatch_keyset |
      c10::DispatchKeySet(
          {c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::ADInplaceOrView}));
  while (s.done < position) {
    Task task = std::move(s.queue.front());
    s.queue.pop_front();
    s.done++;
    task.run();
  }
}
inline void drain(Stream& s) { drain(s, s.issued); }

inline void enqueue(Stream& s, Task task) {
  s.queue.push_back(std::move(task));
  s.issued++;
  if (!settings().lazy) drain(s);
}

// `waiter` goes on only after `other` has reached a position, with all that happened before it.
inline void wait_for(Stream& waiter, Stream& other, uint64_t position, const VectorClock& clock) {
  if (&waiter == &other) return;
  host().tell(waiter.clock);
  waiter.clock.join(clock);
  enqueue(waiter, {[&other, position] { drain(other, position); }});
}
inline void wait_for(Stream& waiter, Stream& other) { wait_for(waiter, other, other.issued, other.clock); }

// The host waits until `s` has reached a position.
inline void synchronize(Stream& s, uint64_t position, const VectorClock& clock) {
  drain(s, position);
  host().learn(clock);
}
inline void synchronize(Stream& s) { synchronize(s, s.issued, s.clock); }

// Give an operation its place in the order: after all that its stream and the host know of.
inline uint64_t issue(Stream& s) {
  host().tell(s.clock);
  return s.clock.advance(s.number);
}

}  // namespace simdev
