-- For wrk with one thread: plays the requests of a file, one after the other, from the first again behind the last.
--
--    wrk -t1 -c CONNECTIONS OPTIONS -s varied.lua URL -- FILE FIRST CONNECTIONS
--
-- FILE has, for each request, the number of its bytes in decimal, a newline, and these bytes. FIRST is the place of the
-- request to begin with, from 0. Says "answered" when the first answer has come, and reports in one line of JSON at the
-- end.

local requests, number, unanswered = {}, 0, 0

function init(args)
   local file = assert(io.open(args[1], "rb"))
   local data = file:read("*a")
   file:close()
   local place = 1
   while place <= #data do
      local newline = assert(data:find("\n", place, true))
      local last = newline + assert(tonumber(data:sub(place, newline - 1)))
      requests[#requests + 1] = data:sub(newline + 1, last)
      place = last + 1
   end
   -- One less: wrk asks for a request before, to see how many it is, and does not send it.
   number = (tonumber(args[2]) - 1) % #requests
   unanswered = tonumber(args[3]) + 1
end

function request()
   number = number % #requests + 1
   if unanswered >= 0 then
      -- The next request of a connection is asked for when its last one has been answered.
      if unanswered == 0 then
         io.write("answered\n")
         io.flush()
      end
      unanswered = unanswered - 1
   end
   return requests[number]
end

-- Times are microseconds.
function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "elapsed_us": %d, "p50_us": %d, "p99_us": %d, "max_us": %d, "bad_status": %d, ' ..
      '"connect_errors": %d, "read_errors": %d, "write_errors": %d, "timeouts": %d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max, errors.status,
      errors.connect, errors.read, errors.write, errors.timeout))
end
