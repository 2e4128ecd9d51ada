// Tells ThreadSanitizer what the fibers are: threads, ordered by the barriers they pass and by
// nothing else. That they take turns on one thread orders nothing. Without ThreadSanitizer, all of
// this is empty.
#pragma once

namespace race {

#ifdef MDCP_EMULATION_TSAN

extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}

constexpr bool kWatched = true;
constexpr unsigned kOrdersNothing = 1;
using Fiber = void*;

inline Fiber running() {
    return __tsan_get_current_fiber();
}
inline Fiber make() {
    return __tsan_create_fiber(0);
}
inline void drop(Fiber fiber) {
    __tsan_destroy_fiber(fiber);
}
inline void switch_to(Fiber fiber) {
    __tsan_switch_to_fiber(fiber, kOrdersNothing);
}
// What happened before a release at an address happened before what follows a later acquire there.
inline void acquire(void* address) {
    __tsan_acquire(address);
}
inline void release(void* address) {
    __tsan_release(address);
}

#else

constexpr bool kWatched = false;
struct Fiber {};

inline Fiber running() {
    return {};
}
inline Fiber make() {
    return {};
}
inline void drop(Fiber) {}
inline void switch_to(Fiber) {}
inline void acquire(void*) {}
inline void release(void*) {}

#endif

}  // namespace race
