// Checks every memory access of a kernel. Kernels compiled with -fsanitize=thread call a function
// for each access; ThreadSanitizer's own library is not linked, these functions are.
//
// An access must lie within one registered buffer, one __shared__ variable, the dynamic shared
// memory, the thread's own stack or (to read) the program's constants; and shared memory must have
// been written in this block before it is read. No block may touch what another one writes in the
// same launch, unless by atomic operations: blocks have no order. (Threads of one block have, by
// its barriers; ThreadSanitizer watches those.)
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "control.h"
#include "engine.h"

// The bounds of the program or library that this file is linked into.
extern "C" __attribute__((visibility("hidden"))) const unsigned char __ehdr_start, _end;

namespace emulation {
namespace {

std::map<uintptr_t, size_t> buffers;

// A piece of shared memory; `written` says which bytes hold something. Without a name, a piece that
// no access may touch.
struct Shared {
    uintptr_t begin;
    size_t size;
    std::string name;
    std::vector<bool> written;
};

std::vector<Shared> shared;  // by address
bool checking = false;

// The blocks that wrote and read four bytes of global memory in this launch.
constexpr uint64_t kNobody = ~uint64_t{0};
constexpr uint64_t kSeveral = kNobody - 1;
struct Users {
    uint64_t writer = kNobody;
    uint64_t reader = kNobody;
};
std::unordered_map<uintptr_t, Users> users;
unsigned users_launch = 0;

// "file:line" of the instruction before a return address, or where it lies in the file.
std::string source_of(const void* return_address) {
    Dl_info info;
    if (dladdr(return_address, &info) == 0) return "?";
    const auto offset =
        static_cast<const char*>(return_address) - static_cast<const char*>(info.dli_fbase) - 1;
    char text[512];
    std::snprintf(text, sizeof text, "addr2line -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                  static_cast<size_t>(offset));
    std::string line;
    if (FILE* const pipe = popen(text, "r")) {
        if (std::fgets(text, sizeof text, pipe) != nullptr) line = text;
        pclose(pipe);
    }
    line.erase(std::find_if(line.begin(), line.end(), [](char c) { return c == ' ' || c == '\n'; }),
               line.end());
    return line.empty() ? "offset " + std::to_string(offset) : line;
}

[[noreturn]] void report(const char* rule, bool write, size_t size, const std::string& where,
                         const void* pc) {
    const std::string message = std::string(rule) + ": thread " + std::to_string(current->rank) +
                                " of block " + std::to_string(block_index.x) +
                                (write ? " writes " : " reads ") + std::to_string(size) +
                                " bytes " + where + ", at " + source_of(pc);
    checking = false;
    stop(message);
}

// The region that holds the address, or null.
Shared* shared_at(uintptr_t address) {
    const auto after = std::upper_bound(
        shared.begin(), shared.end(), address,
        [](uintptr_t value, const Shared& region) { return value < region.begin; });
    if (after == shared.begin()) return nullptr;
    Shared& region = *std::prev(after);
    return address < region.begin + region.size ? &region : nullptr;
}

void check_shared(Shared& region, uintptr_t address, size_t size, bool write, const void* pc) {
    if (region.name.empty())
        report("out of bounds (shared)", write, size, "beside a shared variable", pc);
    const size_t offset = address - region.begin;
    const auto where = [&] {
        return "at byte " + std::to_string(offset) + " of the " + std::to_string(region.size) +
               " of " + region.name;
    };
    if (offset + size > region.size) report("out of bounds (shared)", write, size, where(), pc);
    const auto first = region.written.begin() + static_cast<std::ptrdiff_t>(offset);
    const auto last = first + static_cast<std::ptrdiff_t>(size);
    if (write)
        std::fill(first, last, true);
    else if (std::find(first, last, false) != last)
        report("uninitialised shared memory", write, size, where(), pc);
}

// Smaller accesses are left out: neighbours may belong to different blocks.
void check_blocks(uintptr_t address, size_t size, bool write, const void* pc) {
    if (uint64_t{grid_size.x} * grid_size.y * grid_size.z == 1) return;
    if (users_launch != launch_number) users.clear();
    users_launch = launch_number;
    const uint64_t own =
        block_index.x + uint64_t{grid_size.x} * (block_index.y + grid_size.y * block_index.z);
    for (size_t part = 0; part + 4 <= size; part += 4) {
        Users& here = users[address + part];
        const bool written = here.writer != kNobody && here.writer != own;
        const bool read = write && here.reader != kNobody && here.reader != own;
        if (written || read) {
            const uint64_t other = written ? here.writer : here.reader;
            report("race between blocks", write, size,
                   (written ? "that block " : "read by block ") +
                       (other == kSeveral ? "others" : std::to_string(other)) +
                       (written ? " writes" : ""),
                   pc);
        }
        uint64_t& user = write ? here.writer : here.reader;
        user = user == kNobody || user == own ? own : kSeveral;
    }
}

bool inside(uintptr_t address, size_t size, const void* begin, const void* end) {
    return address >= reinterpret_cast<uintptr_t>(begin) &&
           address + size <= reinterpret_cast<uintptr_t>(end);
}

void check_kernel(const void* pointer, size_t size, bool write, const void* pc, bool atomic) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    if (own_stack(pointer)) return;
    const auto after = buffers.upper_bound(address);
    if (after != buffers.begin()) {
        const auto& [begin, length] = *std::prev(after);
        if (address + size <= begin + length) {
            if (!atomic) check_blocks(address, size, write, pc);
            return;
        }
    }
    if (Shared* const region = shared_at(address))
        return check_shared(*region, address, size, write, pc);
    if (!write && inside(address, size, &__ehdr_start, &_end)) return;
    if (inside(address, size, current, current + 1)) return;
    std::string where = "in no buffer";
    if (after != buffers.begin()) {
        const auto& [begin, length] = *std::prev(after);
        where = "at byte " + std::to_string(address - begin) + " of a buffer of " +
                std::to_string(length);
    }
    report("out of bounds (global)", write, size, where, pc);
}

void check(const void* pointer, size_t size, bool write, const void* pc, bool atomic = false) {
    // Not the launcher's accesses, nor those of an instrumented function that the checker calls.
    if (current == nullptr || checking || size == 0) return;
    checking = true;
    check_kernel(pointer, size, write, pc, atomic);
    checking = false;
}

}  // namespace

void checker_begin_block() {
    shared.clear();
    const auto add = [](const SharedRegion& region) {
        shared.push_back({reinterpret_cast<uintptr_t>(region.begin), region.size, region.name,
                          std::vector<bool>(region.size, false)});
    };
    for (const SharedRegion& region : static_shared()) add(region);
    const SharedRegion dynamic = dynamic_shared_region();
    add(dynamic);
    add({dynamic.begin - kSharedGap, kSharedGap, ""});
    add({dynamic.begin + dynamic.size, kSharedGap, ""});
    std::sort(shared.begin(), shared.end(),
              [](const Shared& a, const Shared& b) { return a.begin < b.begin; });
}

}  // namespace emulation

void emulation_add_buffer(const void* begin, size_t size) {
    emulation::buffers[reinterpret_cast<uintptr_t>(begin)] = size;
}

void emulation_remove_buffer(const void* begin) {
    emulation::buffers.erase(reinterpret_cast<uintptr_t>(begin));
}

void emulation_clear_buffers() {
    emulation::buffers.clear();
}

// The names and meanings are those of ThreadSanitizer's interface.

#define EMULATION_PC __builtin_return_address(0)
#define EMULATION_ACCESS(size)                              \
    extern "C" void __tsan_read##size(void* a) {            \
        emulation::check(a, size, false, EMULATION_PC);     \
    }                                                       \
    extern "C" void __tsan_write##size(void* a) {           \
        emulation::check(a, size, true, EMULATION_PC);      \
    }                                                       \
    extern "C" void __tsan_unaligned_read##size(void* a) {  \
        emulation::check(a, size, false, EMULATION_PC);     \
    }                                                       \
    extern "C" void __tsan_unaligned_write##size(void* a) { \
        emulation::check(a, size, true, EMULATION_PC);      \
    }
EMULATION_ACCESS(1)
EMULATION_ACCESS(2)
EMULATION_ACCESS(4)
EMULATION_ACCESS(8)
EMULATION_ACCESS(16)

extern "C" void __tsan_read_range(void* a, size_t size) {
    emulation::check(a, size, false, EMULATION_PC);
}
extern "C" void __tsan_write_range(void* a, size_t size) {
    emulation::check(a, size, true, EMULATION_PC);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}

#define EMULATION_ATOMIC(bits)                                                                     \
    extern "C" uint##bits##_t __tsan_atomic##bits##_load(const volatile void* a, int) {            \
        emulation::check(const_cast<const void*>(a), bits / 8, false, EMULATION_PC, true);         \
        return *static_cast<const volatile uint##bits##_t*>(a);                                    \
    }                                                                                              \
    extern "C" void __tsan_atomic##bits##_store(volatile void* a, uint##bits##_t v, int) {         \
        emulation::check(const_cast<const void*>(a), bits / 8, true, EMULATION_PC, true);          \
        *static_cast<volatile uint##bits##_t*>(a) = v;                                             \
    }                                                                                              \
    extern "C" bool __tsan_atomic##bits##_compare_exchange_strong(                                 \
        volatile void* a, void* expected, uint##bits##_t desired, int, int) {                      \
        emulation::check(const_cast<const void*>(a), bits / 8, true, EMULATION_PC, true);          \
        return __atomic_compare_exchange_n(static_cast<volatile uint##bits##_t*>(a),               \
                                           static_cast<uint##bits##_t*>(expected), desired, false, \
                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED);                    \
    }
EMULATION_ATOMIC(8)
EMULATION_ATOMIC(32)
EMULATION_ATOMIC(64)
