"""The embedded front end: what speaks HTTP to browsers and Mongrel2's protocol to handlers, in this process."""
