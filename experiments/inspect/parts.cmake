# inspect looks at the models of multi30k, and carries its page as strings.
target_link_libraries(inspect_parts PUBLIC multi30k_parts)
set(page ${folder}/page)
file(GLOB page_files CONFIGURE_DEPENDS ${page}/page.html ${page}/style.css ${page}/*.js)
set(page_strings ${CMAKE_CURRENT_BINARY_DIR}/inspect_page/page_strings.inc)
add_custom_command(OUTPUT ${page_strings}
  COMMAND ${CMAKE_COMMAND} -D FOLDER=${page} -D OUT=${page_strings} -P ${folder}/embed_page.cmake
  DEPENDS ${page_files} ${folder}/embed_page.cmake
  VERBATIM)
target_sources(inspect_parts PRIVATE ${page_strings})
target_include_directories(inspect_parts PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/inspect_page)
