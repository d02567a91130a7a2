// For messages about a name that there is not: the one that was meant.
#pragma once

#include <string_view>
#include <vector>

namespace xformers {

// The name with the fewest characters to put in, take out or replace, the first of equals; "" where there are none.
std::string_view nearest_name(std::string_view name, const std::vector<std::string_view>& names);

}  // namespace xformers
