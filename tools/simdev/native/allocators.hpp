// Device and pinned memory as torch's allocators.
#pragma once

#include "memory.hpp"

namespace simdev {

struct DeviceAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t size) override { return simdev::allocate(current_device, size); }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* dst, const void* src, size_t size) const override {
    Lock lock;
    for (Stream* s : table().by_number) synchronize(*s);
    std::memcpy(dst, src, size);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}  // nothing is cached: freed memory is free
  void recordStream(const c10::DataPtr& data, c10::Stream s) override {
    Lock lock;
    if (Block* b = block_of(data)) b->recorded.insert(stream(s).number);
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override {
    Lock lock;
    const Account& a = account(device);
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* s : {&stats.allocated_bytes, &stats.active_bytes, &stats.reserved_bytes})
      (*s)[0] = {int64_t(a.used), int64_t(a.peak), int64_t(a.total_allocated), int64_t(a.total_freed)};
    stats.requested_bytes[0].current = int64_t(a.requested);
    stats.num_ooms = a.refusals;
    stats.num_device_alloc = a.allocations;
    stats.num_device_free = a.frees;
    return stats;
  }
  void resetAccumulatedStats(DeviceIndex device) override {
    Lock lock;
    account(device).total_allocated = account(device).total_freed = 0;
  }
  void resetPeakStats(DeviceIndex device) override {
    Lock lock;
    account(device).peak = account(device).used;
  }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex device) override {
    Lock lock;
    const Account& a = account(device);
    return {a.capacity - std::min(a.used, a.capacity), a.capacity};
  }
};

struct PinnedAllocator final : at::HostAllocator {
  c10::DataPtr allocate(size_t size) override { return simdev::allocate(kHost, size); }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* dst, const void* src, size_t size) const override { std::memcpy(dst, src, size); }
  bool record_event(void*, void*, c10::Stream) override { return true; }  // copies note the blocks they use themselves
  void empty_cache() override {}
  at::HostStats get_stats() override {
    Lock lock;
    const Account& a = account(kHost);
    at::HostStats stats;
    for (auto* s : {&stats.active_bytes, &stats.allocated_bytes}) {
      s->current = int64_t(a.used);
      s->peak = int64_t(a.peak);
    }
    return stats;
  }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {
    Lock lock;
    account(kHost).peak = account(kHost).used;
  }
};

}  // namespace simdev
