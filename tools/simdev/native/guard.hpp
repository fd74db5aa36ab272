// Devices, streams and events as torch's generic interface sees them: torch.Stream, torch.Event, torch.accelerator.
#pragma once

#include "allocators.hpp"

namespace simdev {

// Made when it is first recorded: before that torch hands over no event, and whoever waits for none goes on.
struct Event {
  Stream* stream;
  uint64_t position;
  VectorClock clock;
  uint64_t number;
};

struct EventCount {
  uint64_t recorded = 0;
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDeviceType; }
  DeviceIndex deviceCount() const noexcept override { return DeviceIndex(settings().device_count); }
  c10::DeviceCapability getDeviceCapability(Device) const override { return {}; }

  Device getDevice() const override { return torch_device(current_device); }
  void setDevice(Device d) const override {
    TORCH_CHECK(d.index() >= 0 && d.index() < settings().device_count, "simdev: invalid device ordinal ",
                int(d.index()), ", there are ", settings().device_count, " devices");
    current_device = d.index();
  }
  void uncheckedSetDevice(Device d) const noexcept override { current_device = index(d); }
  Device exchangeDevice(Device d) const override {
    const Device previous = getDevice();
    setDevice(d);
    return previous;
  }

  c10::Stream getStream(Device d) const override { return wrap(d, current_stream_ids[index(d)]); }
  c10::Stream getDefaultStream(Device d) const override { return wrap(d, 0); }
  c10::Stream getNewStream(Device d, int) const override {
    Lock lock;
    return wrap(d, 1 + table().created[index(d)]++ % kPooledStreams);
  }
  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return getNewStream(d, 0); }
  c10::Stream exchangeStream(c10::Stream s) const override {
    const c10::Stream previous = getStream(s.device());
    current_stream_ids[s.device_index()] = s.id();
    return previous;
  }

  void record(void** handle, const c10::Stream& s, DeviceIndex, c10::EventFlag) const override {
    Lock lock;
    Stream& on = stream(s);
    host().tell(on.clock);
    if (!*handle) *handle = new Event;
    *static_cast<Event*>(*handle) = {&on, on.issued, on.clock, ++immortal<EventCount>().recorded};
  }
  void block(void* handle, const c10::Stream& s) const override {
    Lock lock;
    const auto* event = static_cast<Event*>(handle);
    if (event) wait_for(stream(s), *event->stream, event->position, event->clock);
  }
  void destroyEvent(void* handle, DeviceIndex) const noexcept override { delete static_cast<Event*>(handle); }

  // A queue is lazy, so a host that only asks would ask forever: each question carries out one task, then is answered.
  bool queryEvent(void* handle) const override {
    Lock lock;
    const auto* event = static_cast<Event*>(handle);
    return !event || query(*event->stream, event->position, event->clock);
  }
  bool queryStream(const c10::Stream& s) const override {
    Lock lock;
    Stream& on = stream(s);
    return query(on, on.issued, on.clock);
  }

  void synchronizeEvent(void* handle) const override {
    Lock lock;
    const auto* event = static_cast<Event*>(handle);
    if (!event) return;
    table().host_syncs++;
    synchronize(*event->stream, event->position, event->clock);
  }
  void synchronizeStream(const c10::Stream& s) const override {
    Lock lock;
    table().host_syncs++;
    synchronize(stream(s));
  }
  void synchronizeDevice(DeviceIndex device) const override {
    Lock lock;
    table().host_syncs++;
    for (Stream* s : table().by_number)
      if (s->device == device) synchronize(*s);
  }

  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& s) const override {
    immortal<DeviceAllocator>().recordStream(data, s);
  }

  // There is no time in here; the number of events recorded between two is at least in their order.
  double elapsedTime(void* from, void* to, DeviceIndex) const override {
    return double(static_cast<Event*>(to)->number) - double(static_cast<Event*>(from)->number);
  }

 private:
  // A device without an index is the current one.
  static int index(Device d) { return d.has_index() ? d.index() : current_device; }
  static c10::Stream wrap(Device d, int64_t id) { return c10::Stream(c10::Stream::UNSAFE, torch_device(index(d)), id); }

  static bool query(Stream& s, uint64_t position, const VectorClock& clock) {
    if (s.done < position) {
      drain(s, s.done + 1);
      return false;
    }
    host().learn(clock);
    return true;
  }
};

}  // namespace simdev
