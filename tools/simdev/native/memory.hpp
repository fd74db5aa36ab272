// Blocks of device memory and of pinned host memory, and what each device can hold.
#pragma once

#include "races.hpp"

namespace simdev {

struct Block {
  std::shared_ptr<Bytes> bytes;
  size_t requested;
  size_t size;   // rounded up
  int device;    // or kHost: pinned
  Stream* home;  // the stream it was allocated on; none for pinned memory
  History history{};
  std::set<size_t> recorded{};  // streams named by record_stream

  std::string describe() const { return c10::str("a ", size, "-byte block on ", device_name(device)); }
};

// The account of one device, or of the pinned memory.
struct Account {
  size_t capacity = size_t(8) << 30;
  size_t used = 0, peak = 0, requested = 0;
  size_t total_allocated = 0, total_freed = 0;
  int64_t allocations = 0, frees = 0, refusals = 0;

  bool fits(size_t size) const { return size <= capacity && used <= capacity - size; }

  void add(size_t size, size_t request) {
    used += size;
    requested += request;
    total_allocated += size;
    allocations++;
    peak = std::max(peak, used);
  }
  void remove(size_t size, size_t request) {
    used -= size;
    requested -= request;
    total_freed += size;
    frees++;
  }
};

struct Memory {
  std::array<Account, kMaxDevices> devices;
  Account pinned_account{.capacity = SIZE_MAX};
  std::map<uintptr_t, Block*> pinned;  // by address, because a pinned tensor is an ordinary CPU tensor to torch
};
inline Memory& memory() { return immortal<Memory>(); }
inline Account& account(int device) { return device == kHost ? memory().pinned_account : memory().devices[device]; }

inline size_t round_up(size_t size) { return (size + kAllocationUnit - 1) / kAllocationUnit * kAllocationUnit; }

inline void refuse_if_full(int device, size_t size) {
  Account& a = account(device);
  if (a.fits(size)) return;
  a.refusals++;
  const auto message = c10::str("simdev out of memory. Tried to allocate ", size, " bytes on ", device_name(device),
                                ", which has a capacity of ", a.capacity, " bytes, of which ",
                                a.capacity - std::min(a.used, a.capacity), " are free.");
  // A driver that refuses to pin answers with a plain runtime error.
  TORCH_CHECK(device != kHost, message);
  TORCH_CHECK_WITH(OutOfMemoryError, false, message);
}

// What is never ordered after another stream's use of a block may still be running when the block is handed out again.
inline void check_release(const Block& b) {
  if (settings().races == Races::kIgnore || b.device == kHost) return;
  const Access* a = b.history.unfinished(b.home->clock, b.recorded);
  // Only written down, also in the mode that raises: an exception in a destructor would end the process.
  if (a)
    violations().push_back(c10::str(b.describe(), ", allocated on ", b.home->name(), ", is freed while ", a->describe(),
                                    " may still use it; call record_stream, or wait for it first"));
}

// The deleter of torch's pointer to a block.
inline void release(void* context) {
  if (!context) return;
  Lock lock;
  std::unique_ptr<Block> b(static_cast<Block*>(context));
  check_release(*b);
  b->bytes->freed = true;
  account(b->device).remove(b->size, b->requested);
  if (b->device == kHost) memory().pinned.erase(uintptr_t(b->bytes->address));
}

inline Device torch_device(int device) {
  return device == kHost ? Device(c10::kCPU) : Device(kDeviceType, DeviceIndex(device));
}

inline c10::DataPtr no_memory(int device) { return {nullptr, nullptr, &release, torch_device(device)}; }

inline c10::DataPtr register_block(Block* b) {
  void* address = b->bytes->address;
  account(b->device).add(b->size, b->requested);
  if (b->device == kHost) memory().pinned.emplace(uintptr_t(address), b);
  return {address, b, &release, torch_device(b->device)};
}

inline c10::DataPtr allocate(int device, size_t request) {
  Lock lock;
  if (request == 0) return no_memory(device);
  const size_t size = round_up(request);
  refuse_if_full(device, size);
  void* address = std::aligned_alloc(kAllocationUnit, size);
  TORCH_CHECK(address, "simdev: this machine has no ", size, " bytes for ", device_name(device),
              "; use a smaller model, or config(dry=True)");
  // All ones read as NaN in every floating type, so that a result which used memory before it was written shows it.
  if (device != kHost && settings().poison && !settings().dry) std::memset(address, 0xFF, size);
  Stream* home = device == kHost ? nullptr : &current_stream(device);
  return register_block(new Block{std::make_shared<Bytes>(address, c10::Storage()), request, size, device, home});
}

// Take over memory that an operator of the CPU allocated for its result, as if the device had allocated it.
inline c10::DataPtr adopt(int device, const c10::Storage& result, const Operation& op) {
  const size_t request = result.nbytes();
  if (request == 0) return no_memory(device);
  const size_t size = round_up(request);
  refuse_if_full(device, size);
  auto bytes = std::make_shared<Bytes>(const_cast<void*>(result.data()), result);
  return register_block(new Block{std::move(bytes), request, size, device, &op.stream});
}

inline Block* block_of(const c10::DataPtr& data) {
  return data.get_deleter() == &release ? static_cast<Block*>(data.get_context()) : nullptr;
}

inline Block* pinned_block(const void* address) {
  auto after = memory().pinned.upper_bound(uintptr_t(address));
  if (after == memory().pinned.begin()) return nullptr;
  Block* b = std::prev(after)->second;
  return uintptr_t(address) < uintptr_t(b->bytes->address) + b->size ? b : nullptr;
}

inline Block* block_of(const Tensor& t) {
  if (!t.has_storage()) return nullptr;
  return t.is_privateuseone() ? block_of(t.storage().data_ptr()) : pinned_block(t.storage().data());
}

inline ByteRange bytes_of(const Tensor& t, const Block& b) {
  const auto* first = static_cast<const char*>(t.storage().data()) + t.storage_offset() * int64_t(t.element_size());
  const int64_t begin = first - static_cast<const char*>(b.bytes->address);
  if (t.numel() == 0) return {begin, begin};
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); i++) last += (t.size(i) - 1) * t.stride(i);
  return {begin, begin + (last + 1) * int64_t(t.element_size())};
}

inline void touch(Block& b, ByteRange range, const Operation& op, bool write) {
  if (settings().races == Races::kIgnore || range.begin == range.end) return;
  b.history.add(op, range, write, [&] { return b.describe(); });
}
inline void touch(const Tensor& t, const Operation& op, bool write) {
  if (Block* b = block_of(t)) touch(*b, bytes_of(t, *b), op, write);
}

}  // namespace simdev
