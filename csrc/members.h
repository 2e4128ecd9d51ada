// Structs that Python makes by the names of their members.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>

namespace mdcp {

// A member and its name, which are one: made by MDCP_MEMBER alone.
template <class Struct, class T>
struct Member {
    const char* name;
    T Struct::* member;
};
#define MDCP_MEMBER(Struct, member) \
    (::mdcp::Member<Struct, decltype(Struct::member)>{#member, &Struct::member})

// A pointer is given as the address that Tensor.data_ptr() returns.
template <class T>
T from_python(pybind11::handle given) {
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(given.cast<std::uintptr_t>());
    } else {
        return given.cast<T>();
    }
}

template <class Struct, class T>
void set_member(Struct& made, const Member<Struct, T>& member, const pybind11::kwargs& given,
                const std::string& type) {
    if (!given.contains(member.name)) {
        throw pybind11::type_error(type + ": missing " + member.name);
    }
    const pybind11::handle value = given[member.name];
    try {
        made.*member.member = from_python<T>(value);
    } catch (const pybind11::cast_error&) {
        throw pybind11::type_error(type + ": " + member.name + ": got " +
                                   pybind11::repr(value).cast<std::string>());
    }
}

// Declares a class that is made of keyword arguments alone, one for every member. Another name, or
// one too few, raises a TypeError: nothing depends on an order that could be mistaken.
template <class Struct, class... T>
void declare_struct(pybind11::module_& module, const char* type, Member<Struct, T>... members) {
    // Local, since the emulated core of the tests declares the same types beside this one.
    pybind11::class_<Struct>(module, type, pybind11::module_local())
        .def(pybind11::init([type, members...](const pybind11::kwargs& given) {
            Struct made{};
            (set_member(made, members, given, type), ...);
            for (const auto& item : given) {
                const auto name = item.first.cast<std::string>();
                if (!((name == members.name) || ...)) {
                    throw pybind11::type_error(type + (": unknown " + name));
                }
            }
            return made;
        }));
}

}  // namespace mdcp
