// The functions that Python calls, through ctypes; _library.py declares them. Arguments were checked there or above.
#pragma once

#include "tensors.hpp"

#define SIMDEV_API extern "C" __attribute__((visibility("default")))

namespace simdev {

// Copy a text with its closing zero if it fits; return the size it needs either way.
inline int64_t put(const std::string& text, char* buffer, int64_t size) {
  const int64_t needed = int64_t(text.size()) + 1;
  if (needed <= size) std::memcpy(buffer, text.c_str(), size_t(needed));
  return needed;
}

inline std::string lines(const std::vector<std::string>& sentences) {
  std::string text;
  for (const std::string& s : sentences) text += s + "\n";
  return text;
}

}  // namespace simdev

SIMDEV_API void simdev_start(int count) { simdev::settings().device_count = count; }

// A negative value leaves a setting as it is.
SIMDEV_API void simdev_config(int lazy, int races, int poison, int dry, int thread_clocks) {
  simdev::Lock lock;
  auto& s = simdev::settings();
  if (lazy >= 0) s.lazy = lazy;
  if (races >= 0) s.races = static_cast<simdev::Races>(races);
  if (poison >= 0) s.poison = poison;
  if (dry >= 0) s.dry = dry;
  if (thread_clocks >= 0) s.thread_clocks = thread_clocks;
  if (thread_clocks > 0) simdev::host().at_parting = simdev::host().together;
}

// A device, or kHost for pinned memory.
SIMDEV_API void simdev_set_capacity(int device, uint64_t bytes) {
  simdev::Lock lock;
  simdev::account(device).capacity = bytes;
}

SIMDEV_API void simdev_memory(int device, uint64_t* out) {
  simdev::Lock lock;
  const auto& a = simdev::account(device);
  const uint64_t values[] = {
      a.used, a.peak, a.capacity, uint64_t(a.allocations), uint64_t(a.frees), uint64_t(a.refusals)};
  std::copy(std::begin(values), std::end(values), out);
}

SIMDEV_API void simdev_counters(int64_t* out) {
  simdev::Lock lock;
  out[0] = simdev::table().host_syncs;
  out[1] = simdev::operator_counts().kernels;
  out[2] = simdev::queued_copies();
}

SIMDEV_API void simdev_count_ops(int on) {
  simdev::Lock lock;
  simdev::operator_counts().on = on;
}

SIMDEV_API int64_t simdev_ops(char* buffer, int64_t size) {
  simdev::Lock lock;
  std::ostringstream text;
  for (const auto& [name, count] : simdev::operator_counts().by_name) text << name << ' ' << count << '\n';
  return simdev::put(text.str(), buffer, size);
}

SIMDEV_API int64_t simdev_links(char* buffer, int64_t size) {
  simdev::Lock lock;
  std::ostringstream text;
  for (const auto& [link, use] : simdev::links().used) {
    const auto& [from, to, kind] = link;
    text << from << ' ' << to << ' ' << int(kind) << ' ' << use.count << ' ' << use.bytes << '\n';
  }
  return simdev::put(text.str(), buffer, size);
}

SIMDEV_API void simdev_corrupt_link(int from, int to, int on) {
  simdev::Lock lock;
  if (on) {
    simdev::links().corrupt.insert({from, to});
  } else {
    simdev::links().corrupt.erase({from, to});
  }
}

SIMDEV_API int64_t simdev_violations(char* buffer, int64_t size) {
  simdev::Lock lock;
  return simdev::put(simdev::lines(simdev::violations()), buffer, size);
}

SIMDEV_API int64_t simdev_take_violations(char* buffer, int64_t size) {
  simdev::Lock lock;
  const int64_t needed = simdev::put(simdev::lines(simdev::violations()), buffer, size);
  if (needed <= size) simdev::violations().clear();
  return needed;
}

// The host touches memory. Returns whether that broke the order and is to be raised as an error.
SIMDEV_API int simdev_host_access(const void* address, int64_t bytes, int write, const char* what) {
  simdev::Lock lock;
  const simdev::Block* b = simdev::pinned_block(address);
  if (!b || simdev::settings().races == simdev::Races::kIgnore) return 0;
  const int64_t begin = static_cast<const char*>(address) - static_cast<const char*>(b->bytes->address);
  const int found = b->history.check_host({begin, begin + bytes}, write, what);
  return found > 0 && simdev::settings().races == simdev::Races::kRaise;
}

SIMDEV_API void simdev_seed(int device, uint64_t seed) {
  simdev::Lock lock;
  simdev::default_generator(device).set_current_seed(seed);
}

SIMDEV_API void simdev_reset() {
  simdev::Lock lock;
  simdev::links() = {};
  simdev::violations().clear();
  simdev::operator_counts().by_name.clear();
  simdev::operator_counts().kernels = 0;
  simdev::table().host_syncs = 0;
  for (int device = simdev::kHost; device < simdev::settings().device_count; device++) {
    auto& a = simdev::account(device);
    a.peak = a.used;
    a.refusals = 0;
  }
}
